"""Publishes releases: keys, the repository that `tapotun update` reads, the apt repository, the check of a version.

docs/releasing.md is for the person who does it. `__main__` has the subcommands, `repository` the repository of the
update check, `keys` its keys, `apt` the repository of Debian packages, `version` what has to agree before a release.
"""
