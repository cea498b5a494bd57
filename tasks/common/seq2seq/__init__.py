"""What tasks that read one text and write another share."""
