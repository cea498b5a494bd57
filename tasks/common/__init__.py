"""Code that is shared by all tasks. Only `module`, `datamodule`, `callbacks` and `cli` import Lightning."""
