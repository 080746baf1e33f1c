# QUEST: `make` builds ./quest, `make test` runs every test, `make help` explains.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)# a -j on the command line wins
endif
MAKEFLAGS += --no-builtin-rules
BUILD ?= build$(if $(SAN),/san)$(if $(WERROR),/werror)
QUEST = $(if $(filter build build/werror,$(BUILD)),quest,$(BUILD)/quest)
CXXFLAGS ?= -O3 -g1
Q = $(if $(V),,@)

# -- what is compiled, and how -----------------------------------------------------------------------------------------
# No traps and no errno: without them loops with comparisons and square roots vectorise; no result changes.
# No -Wrestrict: g++ 12 reports it for "text" + std::string (GCC bug 105651).
FLAGS = -std=c++20 -I. $(DEPS_DIR:%=-isystem %/include) -Wall -Wextra -Wshadow -Wno-restrict -ffp-contract=off -fno-math-errno -fno-trapping-math \
  $(if $(WERROR),-Werror) $(CXXFLAGS) $(SAN_FLAGS)
SAN_FLAGS = $(if $(SAN),-O1 -fno-omit-frame-pointer -fsanitize=address$(,)undefined -fno-sanitize-recover=all)
LDLIBS = $(foreach d,$(DEPS_DIR),-L$(d)/lib -Wl$(,)-rpath$(,)$(d)/lib) -lz -lsimdjson -lutf8proc -pthread $(CUDA_LIBS)
, := ,
hash := \#

# -- CUDA: auto: where nvcc is found; the runtime is linked in, the driver looked for when a GPU is asked for -----------
CUDA ?= auto
NVCC := $(realpath $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc)))
WITH_CUDA := $(if $(filter auto,$(CUDA)),$(if $(NVCC),1),$(filter 1,$(CUDA)))
ifneq (,$(and $(WITH_CUDA),$(if $(NVCC),,1)))
$(error CUDA=1: expected nvcc on the PATH or in /usr/local/cuda/bin, found none: install it, or give CUDA=0)
endif
CU := $(wildcard kernels/cuda/*.cu)
# Code for these cards (80 86 89 90: all), and PTX for later ones. Without a choice: the cards that are here, or sm_86.
ifeq ($(origin CUDA_ARCHS),undefined)
CUDA_ARCHS := $(or $(filter 80 86 87 89 90,$(sort $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d .))),86)
endif
ARCHS = $(if $(filter all,$(CUDA_ARCHS)),80 86 89 90,$(CUDA_ARCHS))
NVCC_FLAGS = -std=c++20 -O3 -I. $(DEPS_DIR:%=-isystem %/include) -Xcompiler -Wall,-Wextra $(if $(WERROR),-Werror all-warnings) \
  $(foreach a,$(ARCHS),-gencode arch=compute_$(a)$(,)code=sm_$(a)) \
  -gencode arch=compute_$(lastword $(ARCHS))$(,)code=compute_$(lastword $(ARCHS))
ifneq (,$(WITH_CUDA))
CUDA_OBJ = $(CU:%.cu=$(BUILD)/%.o)
CUDA_LIBS = -L$(abspath $(dir $(NVCC))../lib64) -lcudart_static -lrt -ldl
$(BUILD)/kernels/backend.o: ISA = -DQUEST_CUDA
endif
$(BUILD)/kernels/backend.o: $(BUILD)/cuda_flags
# The same files for tests/all, which has no other GPU: compiled by $(CXX), executed by tests/cuda/emulator.h.
EMULATED = $(CU:%.cu=$(BUILD)/emulated/%.o)

SRC := $(filter-out tools/main.cpp,$(wildcard $(addsuffix /*.cpp,kernels/base kernels model sampling index train tools)))
TEST_SRC := $(wildcard tests/*.cpp $(addprefix tests/,kernels/*.cpp model/*.cpp sampling/*.cpp index/*.cpp train/*.cpp) \
  $(filter-out tests/cuda/hardware.cpp,$(wildcard tests/cuda/*.cpp)) tests/tools/*_test.cpp tests/fuzz/*_test.cpp)
PROGRAMS := $(filter-out %_test,$(basename $(notdir $(wildcard tests/tools/*.cpp))))
OBJ = $(SRC:%.cpp=$(BUILD)/%.o) $(CUDA_OBJ)
TEST_OBJ = $(TEST_SRC:%.cpp=$(BUILD)/%.o)
GPU_TEST_SRC = tests/main.cpp $(addprefix tests/cuda/,hardware.cpp matmul_test.cpp ops_test.cpp train_test.cpp)
GPU_TEST_OBJ = $(GPU_TEST_SRC:%.cpp=$(BUILD)/gpu/%.o)
ALL_OBJ = $(OBJ) $(EMULATED) $(GPU_TEST_OBJ) $(BUILD)/tools/main.o $(TEST_OBJ) $(PROGRAMS:%=$(BUILD)/tests/tools/%.o) $(BUILD)/tests/fuzz/fuzz.o

$(QUEST): $(OBJ) $(BUILD)/tools/main.o
	@echo "  LINK  $@"
	$(Q)$(CXX) $(FLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/tests/all: $(filter-out $(BUILD)/kernels/cuda/% $(BUILD)/kernels/backend.o,$(OBJ)) $(EMULATED) $(TEST_OBJ)
	@echo "  LINK  $@"
	$(Q)$(CXX) $(FLAGS) $^ -o $@ $(LDLIBS) -lgtest

# The tests of tests/cuda on a card that is there.
$(BUILD)/tests/gpu: $(OBJ) $(GPU_TEST_OBJ)
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	$(Q)$(CXX) $(FLAGS) $^ -o $@ $(LDLIBS) -lgtest
$(GPU_TEST_OBJ): $(BUILD)/gpu/%.o: %.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CXX   $< (for a card)"
	$(Q)$(CXX) $(FLAGS) -I$(abspath $(dir $(NVCC))../include) $(TEST_FLAGS) -MMD -MP -c $< -o $@

# Programs of the tests, each with a main() of its own; built when asked for.
$(PROGRAMS:%=$(BUILD)/tools/%): $(BUILD)/tools/%: $(BUILD)/tests/tools/%.o $(filter $(BUILD)/kernels/%,$(OBJ))
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	$(Q)$(CXX) $(FLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/tools/tokenize: $(filter $(BUILD)/model/%,$(OBJ))
$(BUILD)/tools/parity: $(filter-out $(BUILD)/kernels/%,$(OBJ))

# The parsers under libFuzzer; make fuzz builds it, with clang.
$(BUILD)/tools/fuzz: $(OBJ) $(BUILD)/tests/fuzz/fuzz.o
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	$(Q)$(CXX) $(FLAGS) -fsanitize=fuzzer $^ -o $@ $(LDLIBS)

# Instruction sets: only these files, chosen by cpuid at run time. Threaded jumps would split the clamp of the
# exponential into branches, and vectorise into quotients of both: denormal ones, six times as slow.
NO_JUMPS = $(if $(filter clang%,$(notdir $(CXX))),,-fno-thread-jumps)
AVX512 = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
$(BUILD)/kernels/tile_portable.o: ISA = $(NO_JUMPS) -march=x86-64
$(BUILD)/%avx2.o: ISA = $(NO_JUMPS) -mavx2 -mfma
$(BUILD)/%avx512.o: ISA = $(NO_JUMPS) $(AVX512)
$(BUILD)/%avx512bf16.o: ISA = $(AVX512) -mavx512bf16
$(BUILD)/%avx512vnni.o: ISA = $(AVX512) -mavx512vnni
# Tests find the tree, and what was built, through these; -O1 halves their build.
TEST_FLAGS = -O1 -DSOURCE_ROOT='"$(CURDIR)"' -DBUILD_ROOT='"$(abspath $(BUILD))"' -DQUEST_BINARY='"$(abspath $(QUEST))"'
$(BUILD)/tests/%.o: ISA = $(TEST_FLAGS)

$(BUILD)/%.o: %.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CXX   $<"
	$(Q)$(CXX) $(FLAGS) $(ISA) -MMD -MP -c $< -o $@

$(CUDA_OBJ): $(BUILD)/%.o: %.cu $(BUILD)/flags $(BUILD)/cuda_flags
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	$(Q)$(NVCC) -ccbin $(CXX) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@

$(BUILD)/tests/cuda/%.o: ISA += -DQUEST_EMULATE
$(EMULATED): $(BUILD)/emulated/%.o: %.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CXX   $<"
	$(Q)$(CXX) $(FLAGS) -O1 -DQUEST_EMULATE -MMD -MP -x c++ -c $< -o $@

# Every kernel for every card, with what it takes of a multiprocessor; needs no GPU. A spill fails.
$(BUILD)/cuda_compile/%.txt: %.cu $(wildcard kernels/cuda/*.h kernels/cuda/*.cuh kernels/*.h)
	@mkdir -p $(@D)
	@echo "  NVCC  $< for sm_80 86 89 90"
	$(Q)$(NVCC) --threads 2 -ccbin $(CXX) $(NVCC_FLAGS) -Xptxas -v -c $< -o $(@:.txt=.o) >$@.tmp 2>&1 || { cat $@.tmp; exit 1; }
	@mv $@.tmp $@

$(BUILD)/faults.so $(BUILD)/heap_faults.so: $(BUILD)/%.so: tests/%.c $(BUILD)/flags
	@echo "  CXX   $<"
	$(Q)$(CXX) -x c -std=gnu11 -O1 -Wall -Wextra -Werror -shared -fPIC $< -o $@ -ldl

# Changes only when compiler or flags do; then everything is compiled again.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CURDIR) $(CXX) $(FLAGS)' | cmp -s - $@ || echo '$(CURDIR) $(CXX) $(FLAGS)' >$@
$(BUILD)/cuda_flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA_LIBS) $(NVCC) $(NVCC_FLAGS)' | cmp -s - $@ || echo '$(CUDA_LIBS) $(NVCC) $(NVCC_FLAGS)' >$@
FORCE:

-include $(ALL_OBJ:.o=.d)

# -- libraries: one preprocessor call says which headers are missing ---------------------------------------------------
ifneq (,$(filter-out clean help size layers cuda-compile gpu-check,$(or $(MAKECMDGOALS),all)))
HEADERS = zlib1g-dev:zlib.h libsimdjson-dev:simdjson.h libutf8proc-dev:utf8proc.h libhnswlib-dev:hnswlib/hnswlib.h \
  $(if $(filter test tests mutants %/tests/all %/tests/gpu,$(MAKECMDGOALS)),libgtest-dev:gtest/gtest.h)
PROBE = \
  $(hash)if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12\ntoo-old\n$(hash)endif\n\
  $(foreach h,$(HEADERS),$(hash)if !__has_include(<$(lastword $(subst :, ,$(h)))>)\n$(firstword $(subst :, ,$(h)))\n$(hash)endif\n)
NEEDED := $(shell command -v $(firstword $(CXX)) >/dev/null || echo g++; printf '$(PROBE)' | $(CXX) -E -P $(DEPS_DIR:%=-isystem %/include) -x c++ - 2>/dev/null; true)
ifneq (,$(and $(filter g++,$(NEEDED)),$(filter-out g++,$(CXX))))
$(error there is no compiler $(CXX) here: install it, or leave out CXX)
endif
ifeq (g++,$(NEEDED))  # nothing could be probed
NEEDED += $(foreach h,$(HEADERS),$(firstword $(subst :, ,$(h))))
endif
ifneq (,$(filter too-old,$(NEEDED)))
$(error $(CXX) is older than g++ 12: install g++-12 and run make CXX=g++-12)
endif
WANTED := $(if $(wildcard $(BUILD)/asked-for-pip),,$(shell command -v pip3 >/dev/null || echo python3-pip))
ifneq (,$(NEEDED)$(WANTED))
$(ALL_OBJ): | libraries
libraries: $(BUILD)/flags
	@CXX='$(CXX)' DEPS='$(DEPS)' sh tools/libraries.sh '$(NEEDED)' '$(WANTED)'
	@touch $(BUILD)/asked-for-pip
endif
endif

# -- what a person asks for --------------------------------------------------------------------------------------------
.PHONY: FORCE libraries all test tests cuda-compile gpu-check size layers mutants fuzz clean help
.DEFAULT_GOAL := all
all: $(QUEST)
	@$(if $(MAKECMDGOALS),,echo "$(QUEST) is ready; try: ./$(QUEST) help")

tests: $(QUEST) $(BUILD)/tests/all $(BUILD)/faults.so $(BUILD)/heap_faults.so

test: tests
	@$(BUILD)/tests/all $(if $(TEST),--gtest_filter='$(TEST)')

cuda-compile: ARCHS = 80 86 89 90
cuda-compile: $(CU:%.cu=$(BUILD)/cuda_compile/%.txt)
	@awk -f tests/cuda/resources.awk $^

# What only a card can show, in stages; where nothing can be installed, with DEPS_DIR (tests/gpu-check.sh deps DIR).
gpu-check:
	+@MAKEFLAGS= MAKELEVEL=0 DEPS_DIR='$(DEPS_DIR)' sh tests/gpu-check.sh $(STAGE)

size:
	@sh tests/size.sh

layers:
	@sh tests/layers.sh

mutants: $(BUILD)/tools/mutants
	@$< $(or $(SEED),0) $(or $(COUNT),0) '$(or $(ONLY),*)'

fuzz:
	@command -v clang++ >/dev/null || { echo "make fuzz needs clang++: apt-get install clang"; exit 4; }
	@$(MAKE) MAKELEVEL=0 BUILD=build/fuzz CUDA=0 CXX=clang++ CXXFLAGS='-O1 -g -Wno-unknown-warning-option \
	  -Wno-ignored-optimization-argument -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' build/fuzz/tools/fuzz
	@sh tests/fuzz/run.sh $(or $(FUZZ_TIME),60) $(FUZZ)

clean:
	rm -rf build quest

help:
	@echo "make                    build ./quest (installs missing libraries where it may; DEPS=0 only names them)"
	@echo "make test               build and run every test; TEST='Suite.*' chooses; ends: N passed, N failed, N skipped"
	@echo "make SAN=1 test         the same under the address and undefined-behaviour sanitizers"
	@echo "make cuda-compile       every CUDA kernel for sm_80, 86, 89, 90: registers, shared memory; a spill fails; needs no GPU"
	@echo "make gpu-check          what only a GPU can show: tests on it, sanitizer, kernels, step, peers; STAGE='test step'"
	@echo "make size               lines of code by folder, without tests, blank lines and comments"
	@echo "make layers             check which folder includes which (part of make test)"
	@echo "make mutants            break the arithmetic in every way that should make a test fail (hours);"
	@echo "                        SEED=1 COUNT=20 takes a sample of 20 (minutes), ONLY='kernels/nf4*' a file"
	@echo "make fuzz               break the parsers with libFuzzer (clang), FUZZ_TIME=60 seconds each; FUZZ=gguf one of them"
	@echo "make clean              remove build/ and ./quest; run folders stay"
	@echo "Variables: CXX=g++-12  CXXFLAGS='-O3 -g1'  WERROR=1 warnings are errors  V=1 whole commands  -j2 two jobs"
	@echo "           DEPS_DIR=dir libraries and headers in dir/lib and dir/include"
	@echo "           CUDA=0 without the GPU backend, CUDA=1 only with it  CUDA_ARCHS='86 90' or all: code for these cards"
