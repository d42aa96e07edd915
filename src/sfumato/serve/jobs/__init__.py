"""Converting and optimizing beside a server: commands in processes of their own."""

from .manager import Jobs
from .task import Job

__all__ = ["Job", "Jobs"]
