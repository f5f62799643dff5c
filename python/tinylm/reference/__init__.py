"""The slow definitions: what every fast part of TinyLM must equal. Imports nothing from tinylm."""
