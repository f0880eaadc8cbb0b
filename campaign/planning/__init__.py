"""Turns a campaign into a plan: finds the files, hashes the stages' code, and names each task by a key.

In: a `campaign.spec.models.Campaign`. Out: a `campaign.planning.plan.Plan` of picklable tasks. A task whose key is
unchanged need not run again.
"""
