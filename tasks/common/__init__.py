"""What all tasks share. `dispatch`, `checkpoint`, `inference`, `losses`, `metrics` and `export` never import Lightning."""
