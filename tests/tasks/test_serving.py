"""Serving: the answers are those of the predictor in Python, for every task; batches, streams, limits and figures."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi")

from mmattn.tasks.common.commands import record_of
from mmattn.tasks.common.serving.inputs import RequestError, _option, check_item
from mmattn.tasks.common.serving.models import ServedModel, open_models
from mmattn.tasks.common.serving.options import Limits
from mmattn.tasks.common.task import Option, tasks
from tests.conftest import refused, slow_but_first
from tests.tasks.echo import Echo
from tests.tasks.servers import form, request, serving

GRADES = [("tasty", "good"), ("burnt", "bad")]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, dict[str, ServedModel]]]:
    """All built-in models on one server."""
    models = {model.name: model for model in open_models([f"{task}/demo" for task in tasks()], device="cpu")}
    with serving(models.values()) as address:
        yield address, models


@pytest.mark.parametrize("task", tasks())
def test_answers_equal_those_in_python(task: str, server: tuple[str, dict[str, ServedModel]]) -> None:
    """By JSON and by a form; and each answer names the model and its version."""
    address, models = server
    model = models[f"{task}/demo"]
    item = request(address, f"/examples?model={task}/demo").json["items"][0]
    checked = check_item(model.fields, item, 0)
    prediction = model.predictor(checked)
    expected = json.loads(json.dumps({"answer": model.predictor.answer_of(prediction)}))
    expected["prediction"] = json.loads(json.dumps(record_of(checked, prediction)))
    found = request(address, "/predict", {"model": model.name, "items": [item, {}]})
    assert found.status == 200
    assert found.json["results"][0] == expected
    assert found.json["results"][1]["status"] == 422
    assert (found.json["model"], found.json["version"]) == (model.name, model.version)
    fields = {key: value for key, value in checked.items() if key != "id"}
    assert request(address, "/predict", *form({"model": model.name, **fields})).json["results"] == [expected]


@pytest.mark.parametrize("task", slow_but_first(sorted(tasks(), key=lambda task: task != "classification")))
def test_explanations_are_pictures(task: str, server: tuple[str, dict[str, ServedModel]]) -> None:
    address, models = server
    model = models[f"{task}/demo"]
    picture = request(address, "/explain", {"model": model.name, "item": model.examples[0]})
    assert picture.content.startswith(b"\x89PNG")
    assert picture.headers["X-Model-Version"] == model.version


def test_all_examples_are_shown(server: tuple[str, dict[str, ServedModel]]) -> None:
    for model in server[1].values():
        assert len(model.examples) == 6, model.name


def test_options_reach_the_predictor(server: tuple[str, dict[str, ServedModel]]) -> None:
    address, models = server
    item = models["classification/demo"].examples[0]
    body = {"model": "classification/demo", "item": item, "options": {"top_k": 3, "flip": True}}
    assert len(request(address, "/predict", body).json["results"][0]["prediction"]["alternatives"]) == 2
    for option, message in {
        "top_k": "top_k: expected an integer from 1 to 100, found 'x'.",
        "topk": "classification has no such option (did you mean 'top_k'?)",
    }.items():
        found = request(address, "/predict", body | {"options": {option: "x"}})
        assert found.status == 422
        assert message in found.json["error"]
    # What writes files of the server is no option of a request.
    names = [option["name"] for option in models["segmentation/demo"].describe()["options"]]
    assert "masks" not in names
    found = models["text_generation/demo"].describe()
    named = {kind: {option["name"] for option in found[kind]} for kind in ("options", "explain_options")}
    assert named["explain_options"] - named["options"] == {"words"}
    assert "chat" not in named["options"], "what the model refuses is not offered"
    assert "lookup" in named["options"]
    assert "overlays" not in names


def test_samples_do_not_depend_on_who_asks_besides(server: tuple[str, dict[str, ServedModel]]) -> None:
    address, models = server
    options = {"temperature": 1.0, "max_new_tokens": 12}
    body = {"model": "text_generation/demo", "items": ["the old cat", "the dogs"], "options": options}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: request(address, "/predict", body).json["results"], range(4)))
    model = models["text_generation/demo"].predictor
    expected = [model("the old cat", **options).text, model.predict(["a", "the dogs"], **options)[1].text]
    assert all([one["prediction"]["text"] for one in results] == expected for results in found)


def test_a_wrong_field_of_a_form_is_no_option() -> None:
    one, other = ServedModel("one", Echo()), ServedModel("other", Echo())
    options = ", ".join(option["name"] for option in one.describe()["options"])
    fields = ", ".join(field["name"] for field in one.describe()["fields"])
    expected = f"form: expected the fields {fields}, found 'ticket' (did you mean 'text'?); options: {options}."
    with serving([one, other]) as address:
        found = request(address, "/predict", *form({"ticket": "a"}))
        assert found.status == 422
        assert found.json["error"] == f"{expected} Without the field model, one answers; the other models: other."
        assert request(address, "/predict", *form({"ticket": "a", "model": "other"})).json["error"] == expected


@pytest.mark.parametrize("given", [10**400, -(10**400), 1e400, float("nan"), "nan", "1e400"])
def test_numbers_without_bounds_are_refused(given: Any) -> None:
    for kind in (int, float):
        refused("x: expected", _option, Option("x", "a number", kind), given, error=RequestError)


def test_lines_of_a_form_end_as_those_of_a_text(server: tuple[str, dict[str, ServedModel]]) -> None:
    body, headers = form({"model": "text_generation/demo", "prompt": "the cat\r\nsees"})
    (found,) = request(server[0], "/predict", body, headers).json["results"]
    assert found["prediction"]["prompt"] == "the cat\nsees"


def test_texts_are_never_paths(server: tuple[str, dict[str, ServedModel]]) -> None:
    for task, field in {"classification": "image", "asr": "audio", "video": "video"}.items():
        found = request(server[0], "/predict", {"model": f"{task}/demo", "item": {field: "/etc/hostname"}})
        assert found.status == 422
        assert "a data URL, or Base64" in found.json["error"]


def test_description(server: tuple[str, dict[str, ServedModel]]) -> None:
    address, models = server
    schema = request(address, "/openapi.json").json
    assert {"/predict", "/explain", "/models", "/health", "/metrics"} <= schema["paths"].keys()
    content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    items = content["application/json"]["schema"]["properties"]["item"]["oneOf"]
    assert {one["title"]: one["required"] for one in items}["vqa/demo"] == ["image", "question"]
    docs = request(address, "/docs").content.decode()
    for name in models:
        assert f"<h2>{name}</h2>" in docs
    for page in (docs, request(address, "/").content.decode()):
        assert "http://" not in page.replace(f"{address}/predict", "")
        assert "https://" not in page
    assert f"{address}/predict" in docs
    assert "-H " not in docs
    assert request(address, "/health").json["status"] == "ok"
    found = request(address, "/nothing")
    assert (found.status, found.json["status"]) == (404, 404)
    assert request(address, "/predict").status == 405


# With a predictor whose answers are known -----------------------------------------------------------------------------


def test_waiting_items_share_a_batch() -> None:
    echo = Echo(seconds=0.1)
    with serving([ServedModel("echo", echo)], Limits(batch_wait=0.05)) as address:
        with ThreadPoolExecutor(12) as pool:
            bodies = [{"item": {"text": f"text {n}"}, "options": {"top_k": 1 + (n == 9)}} for n in range(12)]
            found = list(pool.map(lambda body: request(address, "/predict", body).json, bodies))
        assert [one["results"][0]["answer"] for one in found] == [f"TEXT {n}" for n in range(12)]
        assert sum(echo.sizes) == 12
        assert max(echo.sizes) >= 5, "while one batch is predicted, the others wait together"
        text = request(address, "/metrics").content.decode()
    assert f'mmattn_batch_items_count{{model="echo"}} {len(echo.sizes)}.0' in text
    assert 'mmattn_requests_total{model="echo",path="/predict",status="200"} 12.0' in text
    assert 'mmattn_waiting_items{model="echo"} 0.0' in text


def test_a_failing_item_fails_alone() -> None:
    """Whether the item is bad, or the model itself raises an exception."""
    with serving([ServedModel("echo", Echo())]) as address:
        items = [{"text": text} for text in ("a", "bad", "b", "crash", "c")]
        found = request(address, "/predict", {"items": items}).json["results"]
        assert [one.get("answer") for one in found] == ["A", None, "B", None, "C"]
        assert (found[1]["status"], found[3]["status"]) == (422, 500)
        assert "secret" not in found[3]["error"], "what the model raised is for the log"
        assert request(address, "/predict", {"item": "crash"}).status == 500
        assert request(address, "/predict", {"item": "a"}).json["results"][0]["answer"] == "A"


def test_a_full_queue_is_refused() -> None:
    with serving([ServedModel("echo", Echo(seconds=0.3))], Limits(max_queue=4, batch_size=2)) as address:
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda n: request(address, "/predict", {"item": f"{n}"}), range(12)))
        statuses = sorted(one.status for one in found)
        assert set(statuses) == {200, 429}
        assert next(one for one in found if one.status == 429).headers["Retry-After"] == "1"
        assert request(address, "/predict", {"item": "x"}).status == 200


def test_limits() -> None:
    with serving([ServedModel("echo", Echo())], Limits(max_bytes=1000, max_items=3, timeout=0.5)) as address:
        assert request(address, "/predict", {"item": "x" * 2000}).status == 413
        chunked = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        body = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert request(address, "/predict", body * 2 + b"0\r\n\r\n", chunked).status == 413
        assert request(address, "/predict", {"items": ["x"] * 4}).status == 413
        assert request(address, "/predict", {"items": ["x"] * 3}).status == 200
        begun = time.monotonic()
        assert request(address, "/predict", {"item": "sleep"}).status == 504
        assert time.monotonic() - begun < 2
        while (found := request(address, "/predict", {"item": "x"})).status == 504:  # until the model is free again
            assert time.monotonic() - begun < 10
        assert found.status == 200


def test_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMATTN_TOKEN", "good")
    with serving([ServedModel("echo", Echo())], token=None) as address:
        for path in ("/predict", "/explain"):
            assert request(address, path, {"item": "a"}).status == 401
            assert request(address, path, {"item": "a"}, {"Authorization": "Bearer bad"}).status == 401
            assert request(address, path, {"item": "a"}, {"Authorization": "Bearer good"}).status == 200
        for path in ("/models", "/examples", "/metrics"):
            assert request(address, path).status == 401
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert request(address, path).status == 200
        assert "curl -H &#x27;Authorization: Bearer TOKEN&#x27; " in request(address, "/docs").content.decode()


def test_text_is_streamed_while_it_is_generated() -> None:
    import http.client

    echo = Echo()
    with serving([ServedModel("echo", echo)]) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
        body = json.dumps({"item": "one two", "stream": True})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        events: list[Any] = []
        for line in reply:
            if line.strip():
                events.append(json.loads(line.removeprefix(b"data: ")))
                echo.go.release()  # the predictor writes a piece once the one before has arrived
        assert [one.get("text") for one in events] == ["ONE ", "TWO ", None]
        assert events[-1]["answer"] == "ONE TWO "
        assert events[-1]["model"] == "echo"
        connection.close()
        found = request(address, "/predict", {"item": "crash", "stream": True})
        assert json.loads(found.content.removeprefix(b"data: "))["status"] == 500
        assert request(address, "/predict", {"items": ["a", "b"], "stream": True}).status == 422
        body = {"item": "a", "stream": True, "options": {"top_k": 2}}
        assert "without beams" in request(address, "/predict", body).json["error"]


def test_a_stream_ends_with_its_client() -> None:
    import http.client

    echo = Echo()
    with serving([ServedModel("echo", echo)]) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
        body = json.dumps({"item": " ".join("x" * 500), "stream": True})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        connection.getresponse().readline()
        connection.close()
        threading.Timer(0.3, echo.go.release, [1000]).start()
        assert request(address, "/predict", {"item": "a"}).json["results"][0]["answer"] == "A"
        assert echo.pieces < 100


def events_of(found: Any) -> list[Any]:
    """The events of a stream that has ended."""
    return [json.loads(line.removeprefix(b"data: ")) for line in found.content.split(b"\n\n") if line]


@pytest.mark.parametrize("task", ["translation", "summarization", "captioning", "asr", "text_generation"])
def test_generated_texts_come_in_parts(task: str, server: tuple[str, dict[str, ServedModel]]) -> None:
    """Over HTTP and in Python: the parts add up to the answer, and the last event has the prediction."""
    address, models = server
    name = f"{task}/demo"
    item = models[name].examples[0]
    options = {} if task in ("asr", "text_generation") else {"num_beams": 1}
    body = {"model": name, "item": item, "options": options}
    (expected,) = request(address, "/predict", body).json["results"]
    *parts, last = events_of(request(address, "/predict", body | {"stream": True}))
    assert "".join(part["text"] for part in parts) == expected["answer"] == last["answer"]
    assert len(parts) > (task != "asr"), "more than one, but of a recording that fits in a window"
    assert last["model"] == name
    given = expected["prediction"] if task != "text_generation" else {**expected["prediction"], "score": None}
    assert last["prediction"] == {key: value for key, value in given.items() if value is not None}
    checked = check_item(models[name].fields, item, 0)
    assert [*models[name].predictor.stream_text(checked, **options)] == [part["text"] for part in parts]
    found = request(address, "/predict", body | {"stream": "auto"})
    assert found.headers["Content-Type"].startswith("text/event-stream")


def test_beams_are_not_streamed(server: tuple[str, dict[str, ServedModel]]) -> None:
    """They are an error where a stream is asked for, and one answer where it is left to the server."""
    address, models = server
    body = {"model": "translation/demo", "item": "the old baker"}
    found = request(address, "/predict", body | {"stream": True})
    assert found.status == 422
    assert "without beams (num_beams 1), found its own." in found.json["error"]
    assert request(address, "/predict", body | {"stream": "auto"}).json == request(address, "/predict", body).json
    found = request(address, "/predict", body | {"stream": "yes"})
    assert "stream: expected true, false or 'auto', found 'yes'." in found.json["error"]
    body = {"model": "classification/demo", "item": models["classification/demo"].examples[0], "stream": True}
    assert "classification/demo does not" in request(address, "/predict", body).json["error"]
    refused("--num_beams: expected 1", lambda: list(models["translation/demo"].predictor.stream_text("the old baker")))
    refused("no text that comes in parts", models["classification/demo"].predictor.stream_text, "a.png")


def test_a_thread_ends_with_its_reader() -> None:
    from mmattn.tasks.common.streaming import in_parts

    tokens: list[int] = []

    def write(send: Any) -> tuple[str, str]:
        for number in range(1000):
            tokens.append(number)
            send("x" * number)
            time.sleep(0.001)
        return "x", "found"

    parts = in_parts(write)
    assert [next(parts), next(parts)] == ["x", "x"]
    parts.close()
    assert len(tokens) < 100
    assert not [thread for thread in threading.enumerate() if thread.name == "mmattn stream"]

    def fail(send: Any) -> tuple[str, str]:
        send("a")
        raise ValueError("what it raised")

    refused("what it raised", lambda: list(in_parts(fail)), error=ValueError)


def test_invalid_options_are_one_error_that_names_the_field(server: tuple[str, dict[str, ServedModel]]) -> None:
    """In the words of requests, which have no dashes; of a list, too, it is the request that fails."""
    for options, message in {
        ("temperature", -1): "temperature: expected a number from 0 to 100, found -1.",
        ("temperature", "hot"): "temperature: expected a number from 0 to 100, found 'hot'.",
        ("on_long", "x"): "on_long: expected cut or refuse, found 'x'.",
        ("stop", "\n"): None,
    }.items():
        body = {"model": "text_generation/demo", "items": ["a", "b"], "options": dict([options])}
        found = request(server[0], "/predict", body)
        assert found.status == (200 if message is None else 422)
        assert found.json.get("error") == message


def test_records_leave_out_what_has_no_value(server: tuple[str, dict[str, ServedModel]]) -> None:
    found = request(server[0], "/predict", {"model": "text_classification/demo", "item": "The soup was never dull."})
    assert found.json["results"][0]["prediction"].keys() == {"id", "label", "score", "alternatives"}
