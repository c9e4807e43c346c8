"""The vendors' languages: what is asked and answered on the wire. Values and bytes in, values and bytes out."""
