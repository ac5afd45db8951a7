"""What both towers and every job exchange: token embeddings, records, manifests and the storage they lie on."""
