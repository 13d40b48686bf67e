"""HTML pages of one file: a frame with style, tables and lists, which every report fills with its own sections."""
