"""The Grafana dashboards, as code: `make docs` writes them to `deploy/monitoring/dashboards/`.

`panels` has the kinds of panels, `operations`, `models` and `scan` a dashboard each. Needs grafana-foundation-sdk.
"""
