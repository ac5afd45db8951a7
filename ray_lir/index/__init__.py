"""What an index is made of: centroids, the residual codec, shards with their postings and documents."""
