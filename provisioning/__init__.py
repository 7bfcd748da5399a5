"""Provisioning: from a bare server to a proven one, through Ansible."""
