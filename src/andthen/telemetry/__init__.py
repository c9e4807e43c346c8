"""What an OpenTelemetry collector is told of completions, where the operator asks for it. Nothing here is imported
before that but the settings and what is noted of a completion.
"""
