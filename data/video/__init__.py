"""Videos: reading by time, clips of frames, listing of files, augmentation alike for all frames of a clip."""
