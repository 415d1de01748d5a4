# SPDX-License-Identifier: LGPL-2.1-or-later
# A thin front for meson. `make demo` and `make check` install what they need (as root, or by sudo).
BUILD ?= build

.PHONY: all demo check bench torture clean install

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	scripts/install-deps build
	meson setup $(BUILD)

demo:
	scripts/install-deps demo
	@$(MAKE) --no-print-directory all
	/usr/bin/python3 demo/demo.py --build $(BUILD)

check:
	scripts/install-deps check
	@$(MAKE) --no-print-directory all
	/usr/bin/python3 tests/run.py --build $(BUILD)

bench:
	scripts/install-deps demo
	@$(MAKE) --no-print-directory all
	/usr/bin/python3 bench/bench.py --build $(BUILD)

# Faults at random instants for TORTURE_MINUTES (10); TORTURE_SEED repeats a run's choices.
torture:
	scripts/install-deps check
	@$(MAKE) --no-print-directory all
	VC_BUILD_DIR=$(abspath $(BUILD)) /usr/bin/python3 tests/torture/torture.py

install: all
	meson install -C $(BUILD)

clean:
	rm -rf $(BUILD)
