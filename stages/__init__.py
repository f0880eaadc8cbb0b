"""Stages that come with campaign: what is done to one file."""
