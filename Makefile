# SPDX-License-Identifier: LGPL-2.1-or-later
# A thin front for meson. `make demo` and `make check` install what they need (as root, or by sudo).
BUILD ?= build

.PHONY: all demo check check-long fuzz torture bench bench-quick bench-full clean install

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

# What takes too long to be waited for; .ci/run calls both.
check-long:
	scripts/install-deps check
	@$(MAKE) --no-print-directory all
	/usr/bin/python3 tests/run.py --build $(BUILD) --long

fuzz:
	scripts/install-deps check
	/usr/bin/python3 tests/fuzz/run.py --build $(BUILD)/fuzz

# bench-quick takes up to 5 minutes, bench 45, bench-full a night.
bench bench-quick bench-full:
	scripts/install-deps bench
	@$(MAKE) --no-print-directory all
	/usr/bin/python3 bench/bench.py --build $(BUILD) --plan $(patsubst bench-%,%,$@)

# Faults at random instants for TORTURE_MINUTES (10); TORTURE_SEED repeats a run's choices.
torture:
	scripts/install-deps check
	@$(MAKE) --no-print-directory all
	VC_BUILD_DIR=$(abspath $(BUILD)) /usr/bin/python3 tests/torture/run.py

install: all
	meson install -C $(BUILD)

clean:
	rm -rf $(BUILD)
