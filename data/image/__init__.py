"""Images: reading, normalizing, augmentation, where labelled ones come from."""
