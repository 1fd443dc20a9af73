"""The VolumeAttachmentRecord: its typed form, the rules that change it, and the store that writes it.

``names`` and ``record`` say what a record is, ``transitions`` and ``imports`` decide (pure: values in, values out), ``store`` reads
and writes with compare-and-swap, ``clock`` keeps the API server's time. The package knows neither the CSI driver nor the operator.
"""
