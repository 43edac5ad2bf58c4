"""Small helpers without a subject of their own; they import nothing else of spinsr."""
