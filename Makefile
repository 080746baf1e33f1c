# First cut: replaced by the full one.
CXX ?= g++
BUILD ?= build
CXXFLAGS = -std=c++20 -O3 -g -I. -Wall -Wextra -Wshadow -ffp-contract=off -MMD -MP $(if $(WERROR),-Werror)
LDLIBS = -lz -lsimdjson -lutf8proc -lpthread
SRC = $(filter-out tools/main.cpp,$(wildcard kernels/base/*.cpp kernels/*.cpp model/*.cpp sampling/*.cpp index/*.cpp train/*.cpp tools/*.cpp))
OBJ = $(SRC:%.cpp=$(BUILD)/%.o)
TESTS = $(wildcard tests/*.cpp)
quest: $(OBJ) $(BUILD)/tools/main.o
	$(CXX) $^ -o $@ $(LDLIBS)
$(BUILD)/tests/all: $(OBJ) $(TESTS:%.cpp=$(BUILD)/%.o)
	$(CXX) $^ -o $@ $(LDLIBS) -lgtest
$(BUILD)/%avx2.o: CXXFLAGS += -mavx2 -mfma
$(BUILD)/%avx512.o: CXXFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
$(BUILD)/%avx512bf16.o: CXXFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma
$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c $< -o $@
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
