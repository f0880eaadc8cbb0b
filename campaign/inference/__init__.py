"""The client side of inference: cuts rows into requests, sends them to servers, and retries those that fail.

In: numpy or awkward arrays and a `campaign.discovery.address.PoolAddress`. Out: arrays, in the order of the rows sent.
Workers use `campaign.inference.client`.
"""
