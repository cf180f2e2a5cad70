"""Files that hold a model: values as JSON and arrays, checksums, and files written as a whole."""
