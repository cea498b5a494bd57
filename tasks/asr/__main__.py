"""`python -m tasks.asr`."""

from tasks.common.dispatch import Argument, main

TITLE = "Speech recognition: train on recordings and their texts, measure, transcribe, see when each word was said."
INPUTS = (
    Argument(
        "--audio",
        "a recording to transcribe, of any length (WAV, FLAC, OGG, MP3, AIFF; others with torchcodec); for a folder of "
        "them there is --input",
    ),
    Argument("--num_beams", "beams of the search; 1: greedy (default: as the model was measured)", {"type": int}),
    Argument("--ctc_weight", "0: attention alone, 1: CTC alone (default: as the model was measured)", {"type": float}),
    Argument(
        "--lm_weight", "of the model's language model, where it has one (default: as it was measured)", {"type": float}
    ),
    Argument("--language", "of Whisper: the language that is spoken, such as de or German (default: it is heard)"),
    Argument("--task", "of Whisper: transcribe, or translate into English (default: as its folder says)"),
    Argument("--window", "seconds that are heard at once (default: the longest clip of the training)", {"type": float}),
)

if __name__ == "__main__":
    main("asr", TITLE, INPUTS)
