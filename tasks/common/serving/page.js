// The page: asks the server for predictions and explanations, and shows them.

const $ = (id) => document.getElementById(id);
const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const words = (name) => name.replace(/_/g, " ");
const COMMON = 4;  // options that are shown at first
let models = [], model = null, media = {}, turn = 0, stopDevice = () => {};

// Requests ------------------------------------------------------------------------------------------------------------

async function call(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const reply = await fetch(path, body ? { method: "POST", body, headers } : { headers });
  if (reply.ok) return reply;
  const found = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
  throw Object.assign(new Error(found.error), { status: reply.status });
}

function blobOf(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

function body(command) {
  const form = new FormData();
  form.append("model", model.model);
  for (const field of model.fields) {
    const value = field.media ? media[field.name] : $(`field-${field.name}`).value;
    if (value) form.append(field.name, value);
    else if (field.required) throw new Error(`${words(field.name)} is missing.`);
  }
  if (command === "predict") form.append("stream", "auto");
  for (const option of command === "explain" ? model.explain_options : model.options) {
    const input = $(`option-${option.name}`);
    const value = option.type !== "bool" ? input.value : input.checked ? "true" : "";
    if (value) form.append(option.name, value);
  }
  return form;
}

async function ask(event) {
  event.preventDefault();
  const own = ++turn, begun = performance.now();
  clear();
  show("…", "");
  $("ask").disabled = true;
  try {
    const reply = await call("predict", body("predict"));
    if (own !== turn) return;
    if (reply.headers.get("Content-Type").startsWith("text/event-stream")) await follow(reply, own);
    else answer(await reply.json(), own);
    if (own !== turn) return;
    $("state").textContent = `${model.model}, version ${model.version}, ${Math.round(performance.now() - begun)} ms`;
    if (model.explains && $("explain").checked) await explain(own);
  } catch (error) {
    if (own === turn) show(error.message, "error");
    if (error.status === 401) login();
  } finally {
    if (own === turn) $("ask").disabled = false;
  }
}

async function explain(own) {
  const before = $("state").textContent;
  $("state").textContent = `${before}; drawing …`;
  try {
    const picture = await (await call("explain", body("explain"))).blob();
    if (own !== turn) return;
    URL.revokeObjectURL($("picture").src);
    $("picture").src = $("whole").href = URL.createObjectURL(picture);
    await $("picture").decode();
    $("picture").hidden = false;
    $("state").textContent = before;
  } catch (error) {
    if (own === turn) $("state").textContent = `${before}. No picture: ${error.message}`;
  }
}

async function follow(reply, own) {  // text that comes piece by piece, as server-sent events
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "", text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (own !== turn) return void reader.cancel();  // the server stops writing
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events.map((line) => JSON.parse(line.replace(/^data: /, "")))) {
      if (event.error) throw new Error(event.error);
      if (event.text) show(text += event.text);
      else answer({ model: event.model, version: event.version, results: [event] }, own);
    }
  }
}

// The answer ----------------------------------------------------------------------------------------------------------

function clear() {
  $("bars").replaceChildren();
  $("picture").hidden = $("record").hidden = true;
  $("state").textContent = "";
}

function show(text, kind = text.length > 120 ? "long" : "") {
  $("answer").textContent = text;
  $("answer").className = kind;
}

function answer(found, own) {
  if (own !== turn) return;
  const { answer: text, prediction } = found.results[0];
  show(text || "(nothing)");
  const others = (prediction?.alternatives || []).map((one) => Array.isArray(one) ? one : [one.answer ?? one.text, one.score]);
  const rows = [[text, prediction?.score], ...others];
  if (rows.every(([, score]) => typeof score === "number" && score >= 0 && score <= 1)) {
    for (const [name, score] of rows) $("bars").append(bar(name, score));
  }
  $("record").hidden = !prediction;
  $("record").querySelector("pre").textContent = JSON.stringify(found, null, 1);
}

function bar(name, score) {
  const line = element("i", { style: `width:${100 * score}%` });
  const parts = [element("span", { textContent: name, title: name }), line];
  return element("div", { className: "bar" }, ...parts, element("small", { textContent: score.toFixed(3) }));
}

// Models and examples -------------------------------------------------------------------------------------------------

function choose(name) {
  stopDevice(false);
  turn++;
  model = models.find((one) => one.model === name) || models[0];
  media = {};
  $("title").textContent = model.title;
  $("about").textContent = `${model.model}${model.about ? ` ${model.about}.` : ""}`;
  $("fields").replaceChildren(...model.fields.flatMap(fieldRow));
  const named = new Map([...model.options, ...(model.explains ? model.explain_options : [])].map((one) => [one.name, one]));
  const rows = [...named.values()].map(optionRow), rest = rows.splice(rows.length > COMMON + 1 ? COMMON : rows.length).flat();
  const others = element("details", {}, element("summary", { textContent: "More options" }), ...rest);
  $("options").replaceChildren(...rows.flat(), ...(rest.length ? [others] : []));
  $("more").hidden = !named.size;
  $("explain").parentElement.hidden = !model.explains;
  $("ask").disabled = false;
  clear();
  show("", "");
  examples(model).catch(() => { $("shown").hidden = true; });
}

function fieldRow(field) {
  const id = `field-${field.name}`, long = /context|text|document|prompt/.test(field.name);
  const named = { id, placeholder: field.help, rows: field.required ? 5 : 2 };
  const input = field.media ? mediaField(field) : element(long ? "textarea" : "input", named);
  const label = words(field.name) + (field.required ? "" : " (optional)");
  return [element("label", { textContent: label, htmlFor: id, title: field.help }), input];
}

function optionRow(option) {
  const type = { bool: "checkbox", int: "number", float: "number" }[option.type] || "text";
  const input = element("input", { type, id: `option-${option.name}`, step: option.type === "int" ? 1 : "any" });
  const label = element("label", { textContent: words(option.name), htmlFor: input.id });
  return [label, input, element("small", { textContent: ` ${option.help}` })];
}

async function examples(own) {
  $("shown").hidden = true;
  const { items } = await (await call(`examples?model=${encodeURIComponent(own.model)}`)).json();
  if (own !== model) return;
  $("examples").replaceChildren(...items.map((item, number) => exampleButton(own, item, number + 1)));
  if (!items.length) $("examples").append("This model has none; serve --examples PATH gives some.");
  $("shown").hidden = false;
}

function exampleButton(own, item, number) {
  const button = element("button", { type: "button" });
  for (const field of own.fields.filter((one) => item[one.name])) {
    const value = item[field.name];
    if (value.startsWith("data:image")) button.append(element("img", { src: value, alt: `example ${number}` }));
    else button.append(element("span", { textContent: field.media ? `${field.name} ${number}` : value }));
  }
  button.onclick = () => {
    for (const field of own.fields) {
      if (field.media) setMedia(field.name, item[field.name] ? blobOf(item[field.name]) : null);
      else $(`field-${field.name}`).value = item[field.name] || "";
    }
    $("form").requestSubmit();
  };
  return button;
}

// The start -----------------------------------------------------------------------------------------------------------

function login() {
  $("refused").hidden = !sessionStorage.getItem("token");  // none has been tried yet
  sessionStorage.removeItem("token");
  $("login").hidden = false;
  document.querySelector("main").hidden = true;
}

async function start() {
  try {
    ({ models } = await (await call("models")).json());
  } catch (error) {
    if (error.status === 401) return login();
    return void ($("about").textContent = error.message);
  }
  $("login").hidden = true;
  document.querySelector("main").hidden = false;
  $("models").replaceChildren(...models.map((one) => element("option", { textContent: one.model })));
  $("models").hidden = models.length < 2;
  $("models").onchange = () => { location.hash = $("models").value; };
  const wanted = () => decodeURIComponent(location.hash.slice(1)) || models[0].model;
  onhashchange = () => { $("models").value = wanted(); choose(wanted()); };
  onhashchange();
}

$("form").onsubmit = ask;
$("login").onsubmit = (event) => { event.preventDefault(); sessionStorage.setItem("token", $("token").value); start(); };
document.onpaste = (event) => {
  const file = event.clipboardData.files[0], field = model?.fields.find((one) => one.media);
  if (file && field) setMedia(field.name, file);
};
start();
