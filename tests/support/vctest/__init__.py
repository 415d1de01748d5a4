# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the end-to-end tests, the demo and the benchmark share: hosts, QEMUs, guests, vecycle."""
