"""The image that containers are made of: how it is built, and the agent that runs in it.

``image`` builds it; the other modules are the agent, are copied into the image, and use nothing but
the standard library and ``rewards.sandbox.seccomp``.
"""
