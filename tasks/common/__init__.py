"""What all tasks share. Only `module`, `datamodule`, `callbacks` and `cli` import Lightning."""
