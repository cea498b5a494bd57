"""Pascal VOC: an XML file an image, in `Annotations/` with the images in `JPEGImages/`, or beside the images.

Boxes are `xmin`, `ymin`, `xmax`, `ymax` in pixels. The files of the VOC challenges count pixels from 1 and include the
last one; they are recognized by their `database`, and one is subtracted from the minima, so that boxes are edges
counted from 0 as in all other formats (and as most tools write them into such files). A `difficult` object is a region
that is neither trained on nor counted, as in VOC's own evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.files import some_below
from mmattn.data.image.finder import BadItem, ImageFinder, check_root
from mmattn.data.image.processor import IMAGE_EXTENSIONS
from mmattn.data.names import nfc
from mmattn.data.readers import check_small, read_lines
from mmattn.tasks.detection.annotations import Annotation, BoxCheck, Row, sized_image

ANNOTATIONS, IMAGES = "Annotations", ("JPEGImages", "images", "Images")
_CHALLENGE = re.compile(r"VOC\s?20\d\d")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path, root: str | Path | None, problems: Problems) -> Iterator[Row]:
    """Yield the images of a folder with XML files or `Annotations/`, of one XML file, or of a list of names.

    Args:
        path: The folder or file; a list is a text file of VOC's `ImageSets/Main/`, a name a line.
        root: Folder of the images, if they are not near the annotations.
        problems: Collects invalid images and objects.

    Raises:
        DataError: There are no XML files.
    """
    check, finders = BoxCheck(problems), _Finders(root)
    for name, file in _files(path, problems):
        try:
            tree = _parse(file)
            image, size = finders.image(tree, file, name)
        except BadItem as bad:
            problems.add(str(file), *bad.args)
        except DataError as error:
            problems.take(str(file), error)
        else:
            fields = check.fields(_annotations(tree, file, problems), size)
            yield str(file), {"id": name, "image": image, **fields}
    check.report(str(path))


def is_list(path: Path) -> bool:
    """Whether a text file is a list of VOC's names: there are annotations in a folder above it."""
    return _annotations_above(path) is not None


def _annotations_above(path: Path) -> Path | None:
    return next((folder / ANNOTATIONS for folder in path.parents[:3] if (folder / ANNOTATIONS).is_dir()), None)


def _files(path: Path, problems: Problems) -> Iterator[tuple[str, Path]]:
    """XML files with their names, which are relative and without suffix."""
    if path.is_dir():
        folder = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
        for name, file in some_below(folder, (".xml",), "XML files of annotations"):
            yield nfc(name[: -len(file.suffix)]), file
        return
    above = _annotations_above(path)
    if path.suffix.lower() == ".xml" or above is None:
        yield nfc(path.stem), path
        return
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        name, _, flag = line.strip().partition(" ")
        file = above / f"{name}.xml"
        if flag.strip() == "-1":  # in the list of a class: the image has no object of it
            continue
        if file.is_file():
            yield nfc(name), file
        else:
            problems.add(f"{path}, line {number}", f"the annotations {file}", "no such file")


def _parse(file: Path) -> ElementTree.Element:
    """The root element.

    Raises:
        BadItem: The file is no XML of VOC.
        DataError: It is too large.
    """
    check_small(file)
    try:
        content = file.read_bytes()
        if b"<!ENTITY" in content:
            raise BadItem("XML without entities of its own", "<!ENTITY")
        tree = ElementTree.fromstring(content)
    except (OSError, ValueError, LookupError, RecursionError, ElementTree.ParseError) as error:
        raise BadItem("XML", shorten(str(error))) from None
    if tree.tag != "annotation":
        raise BadItem("VOC's XML, an element <annotation>", f"<{shorten(tree.tag, 40)[1:-1]}>")
    return tree


def _annotations(tree: ElementTree.Element, file: Path, problems: Problems) -> Iterator[Annotation]:
    first = 1.0 if _CHALLENGE.search(tree.findtext("source/database") or "") else 0.0
    for number, thing in enumerate(tree.findall("object"), start=1):
        name = nfc((thing.findtext("name") or "").strip())
        where = f"{file}, object {number}" + (f" ({name})" if name else "")
        written = [(thing.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        values = [_number(text) for text in written]
        x1, y1, x2, y2 = values
        if not name:
            problems.add(where, "an object with a <name>", "none")
        elif x1 is None or y1 is None or x2 is None or y2 is None:
            problems.add(where, f"a <bndbox> with the numbers {', '.join(_CORNERS)}", shorten(written))
        else:
            difficult = (thing.findtext("difficult") or "").strip() == "1"
            yield Annotation(where, name, (x1 - first, y1 - first, x2, y2), difficult, written=values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class _Finders:
    """Finds the image of an XML file: beside it, or in the folders of images beside its folder."""

    def __init__(self, root: str | Path | None) -> None:
        self.root = check_root(root)
        self.finders: dict[Path, ImageFinder] = {}
        self.users: dict[str, str] = {}

    def image(self, tree: ElementTree.Element, file: Path, name: str) -> tuple[Path, tuple[int, int]]:
        """The image, and its width and height.

        Raises:
            BadItem: It is missing, used by another file, or has another size.
            DataError: It cannot be read.
        """
        stated = (tree.findtext("filename") or "").strip()
        given = Path(stated.replace("\\", "/")).name
        below = Path(name).parent  # of the XML's folder in that of all annotations
        top = file.parents[len(below.parts)]
        finder = self.finders.get(file.parent)
        if finder is None:
            places = [self.root] if self.root else [base / folder for base in (top.parent, top) for folder in IMAGES]
            folders = [folder for place in dict.fromkeys(places) for folder in dict.fromkeys((place / below, place))]
            finder = self.finders[file.parent] = ImageFinder(folders)
            finder.users = self.users
        names = [*([given] if given else []), *(file.stem + ending for ending in IMAGE_EXTENSIONS)]
        beside = next((file.parent / one for one in names if (file.parent / one).is_file()), None)
        image = beside if beside is not None and self.root is None else finder.find(*names)
        finder.use(image, str(file))
        sides = [_number((tree.findtext(f"size/{side}") or "0").strip()) for side in ("width", "height")]
        return image, sized_image(image, *sides)
