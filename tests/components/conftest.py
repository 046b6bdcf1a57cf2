"""Set-up of all tests of projects in YAML."""

import functools

from dagster.components.core import package_entry, snapshot

# Dagster finds the registered components and makes a JSON Schema of each whenever it loads a project. Tests do not
# change the registered components.
package_entry.discover_entry_point_package_objects = functools.cache(package_entry.discover_entry_point_package_objects)
snapshot.get_package_entry_snap = functools.cache(snapshot.get_package_entry_snap)
