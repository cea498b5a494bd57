"""What the tasks that predict labels have in common: a class a sample, or several that do not exclude each other."""
