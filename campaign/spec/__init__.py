"""The description of a campaign: its models, and the YAML file that holds one.

In: a YAML file or Python objects. Out: a validated `campaign.spec.models.Campaign`, or an error that names the line and
the key. Planning, pool and driver read these models.
"""
