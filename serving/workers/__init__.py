"""The deployments behind the gateway: query encoders and shard servers."""
