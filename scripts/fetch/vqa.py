"""The public VQA sets of ``scripts/fetch_data.py``: conversion to the VQA v2 layout, and the split into train and val.

Both sets have an official test part and no validation part. Ours was drawn once, by picture; the pictures' numbers
below are that draw, so that everyone's split is the same. Test pictures are named ``test_*``.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from scripts.fetch.archive import Archive, FetchError, Source

_EASY_VQA_VAL = """
5 13 15 25 49 51 67 69 101 108 124 128 144 146 147 155 157 163 187 199 205 217 228 230 238 247 270 272 289 290 300
308 313 317 335 337 346 350 361 366 385 389 390 407 425 451 459 462 466 471 474 488 499 505 531 545 554 557 562 567
570 580 581 583 585 598 614 616 634 651 669 670 671 675 677 680 689 692 694 695 704 707 708 716 718 719 728 729 734
736 739 744 755 758 764 775 776 781 786 791 794 795 799 802 810 816 824 827 832 835 844 846 849 865 866 868 871 875
878 885 890 892 896 908 916 923 928 929 934 935 940 942 954 957 960 963 977 978 980 985 1005 1017 1028 1036 1044
1045 1063 1064 1073 1090 1106 1110 1124 1126 1153 1155 1164 1167 1172 1176 1180 1182 1196 1197 1222 1233 1236 1237
1241 1260 1270 1273 1282 1293 1295 1304 1306 1333 1343 1365 1367 1380 1392 1407 1408 1420 1423 1439 1440 1443 1446
1469 1474 1494 1507 1519 1522 1530 1534 1550 1553 1572 1587 1609 1623 1632 1637 1655 1657 1665 1680 1684 1687 1690
1692 1696 1700 1719 1726 1731 1748 1752 1753 1764 1770 1773 1785 1786 1790 1794 1798 1809 1817 1838 1839 1844 1850
1860 1868 1872 1876 1878 1887 1891 1892 1896 1897 1910 1917 1925 1928 1937 1938 1959 1967 1968 1971 1972 1978 1981
1985 1988 1994 1999 2009 2016 2025 2028 2045 2048 2049 2050 2054 2066 2087 2095 2102 2103 2118 2124 2128 2157 2185
2196 2207 2208 2212 2218 2255 2264 2281 2299 2306 2311 2324 2329 2330 2336 2344 2355 2368 2387 2400 2402 2404 2405
2429 2441 2449 2470 2476 2477 2483 2487 2490 2491 2495 2505 2511 2515 2518 2524 2545 2547 2551 2553 2558 2560 2572
2573 2581 2593 2602 2603 2604 2608 2629 2632 2638 2667 2680 2684 2685 2686 2705 2716 2734 2736 2740 2741 2757 2768
2785 2807 2816 2839 2843 2859 2882 2887 2898 2899 2909 2924 2933 2935 2936 2948 2961 2965 2978 2981 2982 2994 3029
3035 3047 3048 3058 3070 3086 3094 3108 3109 3116 3125 3126 3129 3140 3141 3142 3143 3155 3165 3172 3174 3177 3187
3190 3201 3205 3210 3212 3215 3219 3229 3230 3235 3241 3255 3257 3261 3262 3267 3279 3309 3321 3329 3336 3337 3342
3347 3356 3361 3379 3380 3389 3411 3415 3416 3418 3420 3423 3425 3467 3470 3474 3476 3488 3504 3513 3522 3532 3534
3536 3541 3543 3560 3562 3563 3569 3571 3576 3604 3610 3619 3621 3623 3627 3631 3665 3667 3670 3674 3688 3691 3741
3744 3756 3760 3772 3784 3795 3807 3819 3825 3830 3839 3841 3849 3854 3857 3858 3859 3861 3866 3869 3872 3873 3877
3897 3902 3907 3912 3919 3920 3934 3937 3991 3995
"""
_DAQUAR_VAL = """
5 7 20 44 49 55 98 107 121 130 142 152 215 232 247 263 265 276 278 293 314 345 371 372 382 403 404 452 454 455 459
461 492 514 552 573 626 630 653 662 674 723 730 738 739 748 749 788 797 825 830 867 887 888 904 915 925 930 949 952
969 983 988 1019 1020 1037 1051 1055 1062 1067 1074 1105 1111 1120 1133 1134 1159 1160 1173 1178 1191 1197 1222 1238
1240 1246 1282 1333 1334 1351 1360 1371 1381 1420 1425
"""


def write_vqa(folder: Path, split: str, rows: list[tuple[str, str, int]], name: str) -> None:
    """Writes ``questions_SPLIT.json`` and ``annotations_SPLIT.json`` in the layout of VQA v2.

    Args:
        folder: Where to.
        split: The split's name.
        rows: Question, answer, picture number; in the order of the question ids.
        name: The pictures' file names, with ``{}`` for the number.
    """
    questions, annotations = [], []
    for question_id, (question, answer, image_id) in enumerate(rows, start=1):
        questions.append({"image_id": image_id, "question": question, "question_id": question_id})
        kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
        annotations.append(
            {
                "question_id": question_id,
                "image_id": image_id,
                "question_type": " ".join(question.lower().split()[:2]),
                "answer_type": kind,
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
            }
        )
    head = {"info": {"description": split}}
    named = [{"id": image_id, "file_name": name.format(image_id)} for image_id in sorted({row[2] for row in rows})]
    _write(
        folder / f"questions_{split}.json",
        head
        | {"task_type": "Open-Ended", "data_subtype": split, "license": {}, "images": named, "questions": questions},
    )
    _write(
        folder / f"annotations_{split}.json",
        head | {"data_type": "image", "data_subtype": split, "license": {}, "annotations": annotations},
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _split_by_image(folder: Path, rows: list[tuple[str, str, int]], val: set[int], name: str) -> None:
    """Writes train and val, which the pictures' numbers decide."""
    for split in ("train", "val"):
        mine = [row for row in rows if (row[2] in val) == (split == "val")]
        write_vqa(folder, split, mine, name)


def _convert_easy_vqa(archive: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    for part in ("train", "test"):
        prefix = rf"(?:easy_vqa/)?data/{part}"
        try:
            content = json.loads(archive.text(rf"{prefix}/questions\.json"))
            rows = [(str(question), str(answer), int(image)) for question, answer, image in content]
        except FetchError:
            raise
        except (TypeError, ValueError) as error:
            raise FetchError(f"easy_vqa: {part}/questions.json is not a list of triples ({error})") from None
        rows.sort(key=lambda row: row[2])
        name = "{}.png" if part == "train" else "test_{}.png"
        for path, content in archive.files(rf"{prefix}/images/\d+\.png"):
            (folder / "images" / name.format(Path(path).stem)).write_bytes(content)
        if part == "train":
            _split_by_image(folder, rows, set(map(int, _EASY_VQA_VAL.split())), name)
        else:
            write_vqa(folder, "test", rows, name)


# "what is on the desk in the image3 ?" names its picture, as almost every question does: that part is cut.
_DAQUAR_TAIL = re.compile(r"\s*(?:\b(?:in|of|on) the )?image(\d+)\s*\?\s*$")


def _convert_daquar(archive: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    parts = {
        part: {int(n) for n in re.findall(r"image(\d+)", archive.text(rf"dataset/{part}_images_list\.txt"))}
        for part in ("train", "test")
    }
    lines = [line for line in archive.text(r"dataset/all_qa_pairs\.txt").splitlines() if line.strip()]
    if len(lines) % 2:
        raise FetchError(f"daquar: expected questions and answers in turn, found {len(lines)} lines")
    rows = []
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        match = re.findall(r"image\s*(\d+)", question)
        if not match:
            raise FetchError(f"daquar: expected a question that names its image, found {question!r}")
        rows.append((_DAQUAR_TAIL.sub("", question).strip() + " ?", answer.strip(), int(match[-1])))
    rows.sort(key=lambda row: row[2])
    training = [row for row in rows if row[2] in parts["train"]]
    _split_by_image(folder, training, set(map(int, _DAQUAR_VAL.split())), "image{}.jpg")
    write_vqa(folder, "test", [row for row in rows if row[2] in parts["test"]], "test_image{}.jpg")
    for path, content in archive.files(r"dataset/images/image\d+\.png"):
        number = int(Path(path).stem.removeprefix("image"))
        if number in parts["train"] | parts["test"]:
            name = f"image{number}.jpg" if number in parts["train"] else f"test_image{number}.jpg"
            _shrink(content, folder / "images" / name)


def _shrink(png: bytes, path: Path) -> None:
    """To 280x212 and JPEG: half the side is plenty for the models here, and a thirtieth of the bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").resize((280, 212), Image.Resampling.LANCZOS).save(path, "JPEG", quality=92)


EASY_VQA = Source(
    name="easy_vqa",
    repository="vzhou842/easy-VQA",
    commit="3b553bb7ff42a868d5f4cbe8c88255d7333c3c31",
    licence="MIT",
    megabytes=10,
    convert=_convert_easy_vqa,
    sha256={
        "questions_train.json": "357deeabf7bbf313827da8efcaad3576ce1172410410bfcf7f2c9d674f097be1",
        "annotations_train.json": "aaceb506dd083e069abc6698e4c962c557a21c19847413128bb29373f71e921a",
        "questions_val.json": "760830d236e061c34f88e78ed39ea5c86926659348ac73c6c0a9e12e6dcf06c5",
        "annotations_val.json": "d7ef211d9bd345c28b6828d66c467694edcfd736ed3ca601922b8c62c75de601",
        "images/": "bbcb0feb96f04fd5f26f3bffecd44041a42fda7acf5e6d43dca8750956334159",
    },
)

DAQUAR = Source(
    name="daquar",
    repository="tezansahu/VQA-With-Multimodal-Transformers",
    commit="e737e61ffa1553b6593579b7c296fbd724c782f8",
    licence="none stated for the data (DAQUAR and NYU Depth V2 are given out for research)",
    megabytes=600,
    convert=_convert_daquar,
    sha256={
        "questions_train.json": "27b5fc4639d28c5105bc63977c5d0d3a3947fac7db97648afb6b2a5ed6884084",
        "annotations_train.json": "c7eddf85b7f0d2c809859b23a7e938dc4fe887fa701d1702bf66c86a27b324c7",
        "questions_val.json": "4ddcb21bb82b01b8a857a983419462fbddd15ab38d6a4aeaaed19fc57b0384c1",
        "annotations_val.json": "bf23de54f372e12abd944f2699f97a3a90c33a00de9bc5f0cdb701ad3be70f5e",
        "images/": "76ed3e5dae3c823f1f70d6f973bb61245695a026ae7c248f1898658407fbf9e7",
    },
)
