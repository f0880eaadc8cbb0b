"""How clients find servers: the records that pilots publish, and the address of a pool.

In: a pool's folder. Out: URLs, states and credentials of its servers. The pool writes records; clients read them.
"""
