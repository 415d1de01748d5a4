# SPDX-License-Identifier: LGPL-2.1-or-later
"""The macro benchmark: whole VMs, migrated by several systems over several links."""
