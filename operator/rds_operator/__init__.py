"""The operator: finds migrations past their deadline and reports what the records say, as Events and metrics.

Start at ``process`` (one life), then ``active`` (what the active replica does), ``timeouts`` and ``reporting``;
``handlers`` ties them to kopf.
"""
