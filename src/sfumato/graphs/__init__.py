"""OpenVINO graphs: reading and changing their weights, and writing them."""
