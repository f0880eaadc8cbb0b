"""The pool of servers: `pool` on the driver's side, `pilot` beside each server, on the server's node.

In: a `campaign.spec.models.ServerSpec`. Out: records of ready servers, which `campaign.discovery` finds. The driver and
users import `campaign.pool.pool.ServerPool`.
"""
