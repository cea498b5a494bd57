"""`python -m tasks.segmentation`."""

from tasks.common.dispatch import Argument, main

TITLE = "Segmentation: train, measure, paint the classes of a picture's pixels, see where the model looked."
INPUTS = (
    Argument("--image", "a picture; or a folder's pictures by --input DIR"),
    Argument("--masks", "folder for PNGs of class ids, one a picture", {"metavar": "DIR"}),
    Argument("--overlays", "folder for pictures with the classes laid over them", {"metavar": "DIR"}),
    Argument("--tile", "side of the tiles that a large picture is cut into", {"type": int, "metavar": "PIXELS"}),
    Argument("--flip", "mean of the picture and its mirror image", {"action": "store_true"}),
    Argument("--class_name", "the class that `explain` asks about (default: the rarest in the picture)"),
)

if __name__ == "__main__":
    main("segmentation", TITLE, INPUTS)
