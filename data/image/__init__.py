"""Images: reading, normalizing, augmentation, where labeled ones come from."""
