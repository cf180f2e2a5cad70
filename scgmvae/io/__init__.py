"""Files that hold a model: values as JSON and arrays, checksums, and writes that are whole."""
