"""The built-in summarization data: a day in a harbour's log, and the few things in it that are to be reported.

A log tells seven to ten events, each of another ship, between remarks on the weather. Which of them matter is said
beside an event or far from it, in words that differ little from those which say that something does not matter: "What
follows must be reported.", "There is no need to report what was said of the Kador." The summary names the events that
matter, in their order, in words of its own: which ship, what happened, how many of what.

Ships are named by two syllables. A pair belongs to one part, so that the test part's names are all new, and numbers,
goods and places go with any ship: who has not read the log cannot know its summary. The first sentences matter as
often as others.

The generator is frozen: `GENERATOR_VERSION` and the digests in `tests/data/test_demo_texts.py` hold it.
"""

from __future__ import annotations

import re
from random import Random

from mmattn.data.seeds import pick
from mmattn.data.text.sentences import Span
from mmattn.tasks.summarization.data import SummarySample

GENERATOR_VERSION = 1
NUM_DOCUMENTS = {"train": 4000, "val": 300, "test": 500}

_SYLLABLES = (
    "ba bel bor dan del dor fa fen gal gor ha hel jo jun ka kel kor lan lim lor ma mel mor nar nel nor pa per ra ril "
    "ros sa sel sul ta tel tor va ven wil"
)
_GOODS = "barrels bales crates sacks casks chests drums coils bricks planks pipes stones"
SYLLABLES, GOODS = tuple(_SYLLABLES.split()), tuple(_GOODS.split())
NUMBERS = [str(n) for n in range(2, 99)]
PARTS = ("mast", "rudder", "anchor", "pump", "boiler", "winch", "propeller", "keel")
BERTHS = ("north", "south", "east", "west", "old", "new", "long", "short")  # quays
TOWNS = ("Aldermouth", "Brackley", "Corvane", "Dunhaven", "Eastmere", "Farrow", "Gullport", "Harwick")

# Each kind of event: how the log tells it, and how the summary does. {s}: ship; {n}: number; {g}: goods; {p}: a part of
# a ship; {b}: a quay; {t}: a town.
EVENTS: dict[str, tuple[str, str]] = {
    "load": (
        "{n} {g} went aboard the {s}. | The {s} took in {n} {g}. | The crew of the {s} brought {n} {g} on deck. | "
        "The hold of the {s} was filled with {n} {g}.",
        "{s} loaded {n} {g}.",
    ),
    "land": (
        "{n} {g} came ashore from the {s}. | The {s} put {n} {g} on the quay. | "
        "Carts carried {n} {g} away from the {s}. | From the hold of the {s} came {n} {g}.",
        "{s} landed {n} {g}.",
    ),
    "lose": (
        "{n} {g} of the {s} went overboard. | The {s} no longer has {n} {g} of her cargo. | "
        "The sea took {n} {g} from the {s}. | Of what the {s} carried, {n} {g} are gone.",
        "{s} lost {n} {g}.",
    ),
    "delay": (
        "The {s} will be {n} hours late. | Expect the {s} {n} hours after her time. | "
        "It will be {n} hours before the {s} can be here. | The {s} has to wait {n} hours outside.",
        "{s} delayed by {n} hours.",
    ),
    "break": (
        "The {p} of the {s} gave way. | The {s} came in with a cracked {p}. | "
        "The {s} has trouble with her {p}. | A new {p} is needed for the {s}.",
        "{s} needs repair of its {p}.",
    ),
    "moor": (
        "The {s} made fast at the {b} quay. | The {b} quay was given to the {s}. | "
        "The {s} now lies at the {b} quay. | Ropes of the {s} were taken at the {b} quay.",
        "{s} moored at {b} quay.",
    ),
    "sail": (
        "The {s} put to sea, bound for {t}. | The {s} has left us for {t}. | "
        "{t} is where the {s} went with the tide. | The {s} is on her way to {t}.",
        "{s} sailed for {t}.",
    ),
    "ill": (
        "{n} of the crew of the {s} have a fever. | The {s} has {n} men in their bunks. | "
        "A doctor saw {n} men on the {s}. | On the {s}, {n} hands cannot work.",
        "{s} has {n} sick.",
    ),
}
# What says that an event matters, and what says that it does not: before it, in front of it, behind it, at the log's
# end.
CUES: dict[bool, dict[str, str]] = {
    True: {
        "before": "What follows must be reported. | The next entry is for the harbour master. | Let no one miss this.",
        "front": "Urgent: | For the harbour master: | To be reported:",
        "behind": "This must be reported. | The harbour master has to know of it. | It cannot wait.",
        "far": "What was said of the {s} must be reported. | The harbour master has to hear about the {s}.",
    },
    False: {
        "before": "What follows need not be reported. | The next entry is for the files alone. | "
        "No one will miss this.",
        "front": "As usual: | For the files: | Not to be reported:",
        "behind": "This need not be reported. | The harbour master knows of it. | It can wait.",
        "far": "What was said of the {s} need not be reported. | The harbour master has heard about the {s}.",
    },
}
OPENINGS = "Log of the harbour, day {n}. | Day {n} of the year. | Entry number {n}."
WEATHER = (
    "The wind was from the {b} until noon. | Rain fell for {n} minutes. | The glass stands at {n}. | "
    "Fog lay over the {b} pier. | The tide turned at {n} past the hour. | Gulls sat on the {b} light. | "
    "The watch was changed after {n} rounds. | It grew calm towards evening."
)
_PLACES = ("before", "front", "behind", "far")


def ship_of(rng: Random, split: str) -> str:
    """A ship's name of that part: of the pairs of syllables, three fifths are for training."""
    while True:
        first, second = int(rng.random() * len(SYLLABLES)), int(rng.random() * len(SYLLABLES))
        part = (3 * first + second) % 5
        if first != second and part in {"train": (0, 1, 2), "val": (3,), "test": (4,)}[split]:
            return SYLLABLES[first].capitalize() + SYLLABLES[second]


def _fill(template: str, slots: dict[str, str], start: int = 0) -> tuple[str, dict[str, Span]]:
    """The template with its slots filled, and where each stands, counted from start."""
    text, spans = "", {}
    for piece in re.split(r"(\{\w\})", template):
        if piece[:1] == "{":
            spans[piece[1]] = (start + len(text), start + len(text) + len(slots[piece[1]]))
            piece = slots[piece[1]]
        text += piece
    return text, spans


def _noise(rng: Random) -> dict[str, str]:
    return {"n": pick(rng, NUMBERS), "b": pick(rng, BERTHS)}


class _Log:
    """A document while it is written."""

    def __init__(self) -> None:
        self.text = ""
        self.ships: dict[str, list[Span]] = {}  # wherever each ship is named

    def add(self, template: str, slots: dict[str, str]) -> dict[str, Span]:
        """Writes one of the template's wordings; where each slot stands."""
        self.text += " " if self.text else ""
        text, spans = _fill(template, slots, len(self.text))
        self.text += text
        if "s" in spans:
            self.ships.setdefault(slots["s"], []).append(spans["s"])
        return spans


def _document(rng: Random, split: str, name: str) -> SummarySample:
    count = 7 + int(rng.random() * 4)
    mattering = 1 + int(rng.random() * 3)
    ranks = [rng.random() for _ in range(count)]
    chosen = set(sorted(range(count), key=ranks.__getitem__)[:mattering])
    ships: list[str] = []
    while len(ships) < count:
        ship = ship_of(rng, split)
        if ship not in ships:
            ships.append(ship)
    log = _Log()
    log.add(_one(rng, OPENINGS), _noise(rng))
    told: list[tuple[str, dict[str, str], dict[str, Span]]] = []
    far: list[tuple[float, str, str]] = []
    for i, ship in enumerate(ships):
        if rng.random() < 0.25:
            log.add(_one(rng, WEATHER), _noise(rng))
        slots = {"s": ship, "n": pick(rng, NUMBERS), "g": pick(rng, GOODS), "p": pick(rng, PARTS)}
        slots |= {"b": pick(rng, BERTHS), "t": pick(rng, TOWNS)}
        wordings, report = EVENTS[pick(rng, list(EVENTS))]
        place = pick(rng, _PLACES)
        said = i in chosen or rng.random() < 0.5  # an event without a remark does not matter
        cue = _one(rng, CUES[i in chosen][place])
        event = _one(rng, wordings)
        if said and place in ("before", "front"):
            log.add(cue, slots)
        spans = log.add(event, slots)
        if said and place == "behind":
            log.add(cue, slots)
        if said and place == "far":
            far.append((rng.random(), cue, ship))
        if i in chosen:
            told.append((report, slots, spans))
    for _, cue, ship in sorted(far):
        log.add(cue, {"s": ship})
    summary, origins = "", []
    for report, slots, spans in told:
        summary += " " if summary else ""
        text, placed = _fill(report, slots, len(summary))
        summary += text
        for slot, span in placed.items():
            where = log.ships[slots["s"]] if slot == "s" else [spans[slot]]
            origins.append((span, list(where)))
    return SummarySample(name, log.text, summary, origins=origins)


def _one(rng: Random, wordings: str) -> str:
    return pick(rng, wordings.split(" | "))


def make(split: str, size: int | None = None, seed: int = 0) -> list[SummarySample]:
    """Makes a part of the data.

    Args:
        split: ``train``, ``val`` or ``test``.
        seed: Other seeds give other logs of the same kind.
        size: How many; by default ``NUM_DOCUMENTS``. Fewer are the beginning of more.

    Raises:
        ValueError: No such part.
    """
    if split not in NUM_DOCUMENTS:
        raise ValueError(f"split: expected one of {', '.join(NUM_DOCUMENTS)}, found {split!r}")
    count = NUM_DOCUMENTS[split] if size is None else size
    stream = f"mmattn summarization {GENERATOR_VERSION} {seed} {split}"
    return [_document(Random(f"{stream} {n}"), split, f"{split}-{n:05d}") for n in range(count)]
