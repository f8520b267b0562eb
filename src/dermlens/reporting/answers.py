"""Answers on a terminal: one line a picture; below, what to do and why, once for all pictures, and the warning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.card_text import model_facts, warnings
from dermlens.bundle.case_mix import CaseMix, mix_words
from dermlens.bundle.nearest import Neighbour
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.inference.judge import ADVICE, SYMBOLS, spoken
from dermlens.inference.prediction import Prediction
from dermlens.reporting.proven import MARKS, Proven, Verdict
from dermlens.text import one_line, percent, printable

BAR_WIDTH = 8
ROOMY = 72  # columns from which on two spaces stand between columns
LEAST_NAME = 12  # columns for the name of an image, before names of diagnoses give way to their codes
LEAST = 5  # in any case
STATUS_STYLE = {"ok": "green", "uncertain": "yellow", "rejected": "bold red"}
ADVICE_STYLE = {
    "refer": "bold red",
    "see_clinician": "bold yellow",
    "retake": "bold blue",
    "not_assessed": "bold",
    "no_referral": "green",
}
"""The colour of each advice, the gravest first."""

ASCII = str.maketrans("▲◆↻○–█░…✓✗“”", "!!>o-#.~+x''")  # for terminals that have no other characters
UNRELIABLE = "Its figures, marked “?”, are not to be relied on."
IN_BRACKETS = "In brackets: how probable it is to be malignant or premalignant."
Label = Callable[[str], str]
"""How a class is called, by its code."""
NEIGHBOUR_WORDS = (
    "Nearest: the training lesions that look most alike to the network, with their diagnosis and similarity (1 is the "
    "same). They show what the answer is based on; they prove nothing."
)


def show(
    answers: Sequence[Prediction], bundle: Bundle, *, top: int, console: Console, proven: Proven | None = None
) -> None:
    """Print one line for each answer, errors included, and below them what to do and what one needs to know.

    Args:
        top: how many classes a wide terminal shows.
        proven: what was proven for the images, to show beside the answers.
    """
    read = [answer for answer in answers if answer.error is None]
    folder = common_folder([answer.image for answer in read])

    def tell(words: str | Text, style: str = "", indent: int = 0) -> None:
        text = words if isinstance(words, Text) else Text(words, style)
        if console.options.ascii_only:
            text.plain = text.plain.translate(ASCII)
        console.print(Padding(text, (0, 0, 0, indent), expand=False) if indent else text)

    def name_all(names: Sequence[str]) -> None:
        for line in _filled(names, console.width - 2):
            tell(line, indent=2)

    if read and folder:
        tell(f"in {printable(folder)}", "dim")
    for line in _lines(read, folder, top, console.width, proven, names_of(bundle)):
        tell(line)
    _tell_advice(read, folder, tell, name_all)
    _tell_neighbours(read, folder, tell)
    if len(read) < len(answers):
        tell("")
    for answer in answers:
        if answer.error is not None:
            tell(printable(f"error: {answer.error['message']} {answer.error['remedy']}"), "red")
    if len(read) < len(answers):
        tell(f"{len(read)} answered, {len(answers) - len(read)} failed.")
    if not read:
        return
    tell("")
    if proven and (words := proven.summary(read)):
        tell(words, "bold")
    for words in (mix_sentence(read[0].case_mix), *referral_words(read), one_line(bundle.scope)):
        tell(words, "dim")
    for sentence in warnings(model_facts(bundle.card)):
        tell(sentence, "red" if bundle.leaky else "yellow")
    tell(DISCLAIMER, "bold")


def _lines(
    answers: Sequence[Prediction], folder: str, top: int, width: int, proven: Proven | None, name_of: Label
) -> Iterable[Text]:
    """Lay out one line for each answer, the richer the wider the terminal is; what matters is never cut off."""
    if not answers:
        return
    gap = 2 if width >= ROOMY else 1
    column_of = partial(_Column, roomy=gap == 2)
    names = [_short(answer, folder) for answer in answers]
    longest = max(map(cell_len, names))
    verdicts = [proven.of(answer) if proven else None for answer in answers]
    status = column_of("status", [Text(answer.status, STATUS_STYLE[answer.status]) for answer in answers])
    share = column_of("%", [Text(_share(answer), _tone(answer)) for answer in answers], right=True)
    advice = column_of("advice", [_advice(answer) for answer in answers])
    for label, beside in ((name_of, name_of), (name_of, _code), (str, _code)):
        shown = [column_of("proven", _marks(verdicts, beside))] if any(verdicts) else []
        left = width - sum(column.width + gap for column in (status, share, *shown, advice)) - gap
        room = left - min(longest, LEAST_NAME)
        if max(cell_len(_first(answer, label)) for answer in answers) <= room:
            break
    longest_code = max(cell_len(_first(answer, str)) for answer in answers)
    room = max(room, min(left - LEAST, longest_code), LEAST)
    firsts = [_diagnosis(answer, label, room) for answer in answers]
    columns = [status, share, column_of("diagnosis", [first for first, _ in firsts]), *shown, advice]
    left = width - sum(column.width + gap for column in columns)
    for title, extra in _extras(answers, [told for _, told in firsts], top):
        column = column_of(title, extra)
        if left - column.width - gap >= longest:
            columns.insert(len(columns) if column.title else 2, column)
            left -= column.width + gap
    image = column_of("image", [Text(name) for name in shortened(names, max(LEAST, min(left, longest)))])
    for cells in zip(*(column.padded() for column in (image, *columns)), strict=True):
        line = Text(" " * gap).join(cells)
        line.rstrip()
        yield line


class _Column:
    """Cells of one width under a dim title, which is cut where there is little room."""

    def __init__(self, title: str, cells: Sequence[Text], *, roomy: bool, right: bool = False) -> None:
        self.title, self._right = title, right
        widest = max(cell.cell_len for cell in cells)
        self._cells = [Text(title if roomy or len(title) <= widest else title[:4], "dim"), *cells]
        self.width = max(cell.cell_len for cell in self._cells)

    def padded(self) -> Iterable[Text]:
        for cell in self._cells:
            space = Text(" " * (self.width - cell.cell_len))
            yield space + cell if self._right else cell + space


_MARK = {True: "green", False: "red", None: ""}


def _marks(verdicts: Sequence[Verdict | None], label: Label) -> list[Text]:
    words = [(f"{MARKS[v.right]} {label(v.code)}".strip(), _MARK[v.right]) if v else ("", "") for v in verdicts]
    return [Text(text, style) for text, style in words]


def _code(code: str) -> str:
    """Return a code that may be the long name of an unknown diagnosis, cut to the length of codes."""
    return _cut(code, 8)


def names_of(bundle: Bundle) -> Label:
    """Return what a model calls its classes; other diagnoses have the names of the vocabulary."""
    names = dict(zip(bundle.codes, bundle.names, strict=True))
    return lambda code: names.get(code) or display_name(code)


def _share(answer: Prediction) -> str:
    return percent(answer.probability) if answer.shows_lesion and answer.probability is not None else ""


def _tone(answer: Prediction) -> str:
    return "dim" if answer.status == "rejected" else "bold"


def _first(answer: Prediction, label: Label) -> str:
    if not answer.shows_lesion:
        return "–"
    return one_line(label(answer.diagnosis_code or "")) + (" ?" if answer.status == "rejected" else "")


def _diagnosis(answer: Prediction, label: Label, room: int) -> tuple[Text, int]:
    """Return the first diagnosis, with "or" the next where it is uncertain and there is room, and how many it names."""
    first = _cut(_first(answer, label), room)
    text = Text(first, _tone(answer))
    if answer.status == "uncertain" and len(answer.probabilities) > 1:
        code, share = answer.top(2)[1]
        for name in (label(code), code):
            more = f" or {one_line(name)} {percent(share)}"
            if cell_len(first + more) <= room:
                return text.append(more, ""), 2
    return text, 1


def _extras(answers: Sequence[Prediction], told: Sequence[int], top: int) -> Iterable[tuple[str, list[Text]]]:
    """Yield what a wide terminal shows beside the rest: a bar, what cannot be ruled out, and the next classes."""
    filled = [round((answer.probability or 0.0) * BAR_WIDTH) if answer.shows_lesion else None for answer in answers]
    yield "", [Text("" if n is None else "█" * n + "░" * (BAR_WIDTH - n), "cyan") for n in filled]
    possible = [" ".join(answer.prediction_set or ()) if answer.status != "rejected" else "" for answer in answers]
    if any(possible):
        yield "not ruled out", [Text(one_line(codes), "dim") for codes in possible]
    rest = [answer.top(top)[n:] if answer.shows_lesion else [] for answer, n in zip(answers, told, strict=True)]
    if any(rest):
        yield "then", [Text("  ".join(f"{one_line(c)} {percent(p)}" for c, p in each), "dim") for each in rest]


def _advice(answer: Prediction) -> Text:
    code = answer.advice.code if answer.advice else "not_assessed"
    return Text(f"{SYMBOLS[code]} {ADVICE[code]}", ADVICE_STYLE[code])


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most `width` cells, cut in the middle, where they differ if that can be."""
    results = [[_cut(name, width, kept) for name in names] for kept in (width // 3, width // 2, 1, width - 2)]
    return max(results, key=lambda found: len(set(found)))


def _cut(name: str, width: int, kept: int = 1) -> str:
    if cell_len(name) <= width:
        return name
    start = set_cell_size(name, kept).rstrip()
    end = name
    while cell_len(end) > width - kept - 1:
        end = end[1:]
    return f"{start}…{end}"


def common_folder(names: Sequence[str]) -> str:
    """Return the deepest folder that all names begin with, its last slash included; "" where they share none."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return f"{'/'.join(shared)}/" if any(shared) else ""


def _short(answer: Prediction, folder: str) -> str:
    return one_line(printable(answer.image.removeprefix(folder)))


Tell = Callable[..., None]


def _tell_advice(answers: Sequence[Prediction], folder: str, tell: Tell, name_all: Tell) -> None:
    """Say what to do, and why it is uncertain or rejected: one sentence for all images that it is true of."""
    groups: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    doubts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for answer in answers:
        name, advice = _short(answer, folder), answer.advice
        if answer.status != "ok":
            doubts[answer.status, why_words(answer)].append(name)
        if advice is None:
            continue
        first, rest = spoken(advice)
        share = answer.malignant_probability if advice.code == "refer" else None
        note = UNRELIABLE if advice.code == "see_clinician" else IN_BRACKETS if share is not None else ""
        rest = f"{rest} {note}".strip()
        groups[advice.code, first, rest].append(f"{name} ({percent(share)})" if share is not None else name)
    gravest = list(ADVICE_STYLE)
    for code, first, rest in sorted(groups, key=lambda group: gravest.index(group[0])):
        tell("")
        tell(Text(f"{SYMBOLS[code]} {first}", ADVICE_STYLE[code]).append(f" {rest}".rstrip(), "default not bold"))
        name_all(groups[code, first, rest])
    for (status, why), names in doubts.items():
        tell("")
        tell(Text(f"{status.capitalize()}: ", STATUS_STYLE[status]).append(why, "default not bold"))
        name_all(names)


def _filled(names: Sequence[str], width: int) -> list[str]:
    """Return names with commas between, on lines that break between two names."""
    lines = [""]
    for name in [*(f"{name}," for name in names[:-1]), *names[-1:]]:
        if lines[-1] and cell_len(f"{lines[-1]} {name}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".lstrip()
    return lines


def why_words(answer: Prediction) -> str:
    """Say why it is uncertain or rejected, with every reason once."""
    return " ".join(dict.fromkeys([answer.why, *(reason.text for reason in answer.reasons)]))


def _tell_neighbours(answers: Iterable[Prediction], folder: str, tell: Tell) -> None:
    with_neighbours = [answer for answer in answers if answer.neighbours]
    for answer in with_neighbours:
        tell(printable(f"nearest to {_short(answer, folder)}: {neighbours_words(answer.neighbours or ())}"))
    if with_neighbours:
        tell(NEIGHBOUR_WORDS, "dim")


def neighbours_words(neighbours: Sequence[Neighbour]) -> str:
    """Return `ISIC_0024306 NV 0.93, ...`: name, diagnosis and similarity of training lesions."""
    return ", ".join(f"{one_line(n.image)} {one_line(n.diagnosis)} {n.similarity:.2f}" for n in neighbours)


def mix_sentence(mix: CaseMix) -> str:
    """Say what percentages mean."""
    return f"The percentages tell how probable a diagnosis would be {mix_words(mix)}."


def referral_words(answers: Sequence[Prediction]) -> list[str]:
    """Say what the referral threshold of these answers does and reaches; nothing where there is none."""
    point = next((a.referral for a in answers if a.referral and a.referral.get("threshold") is not None), None)
    if point is None:
        return []
    limit = percent(point["threshold"], 1)
    words = f"Referral is advised when malignant and premalignant together reach {limit}, or one of them is first"
    sensitivity, specificity = point["sensitivity"], point["specificity"]
    if sensitivity is None or specificity is None:
        return [f"{words}."]
    return [f"{words}: sensitivity {percent(sensitivity)}, specificity {percent(specificity)} on unseen lesions."]
