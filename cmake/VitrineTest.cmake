# vitrine_test(<directory name> SOURCES ... LIBS ... [TIMEOUT seconds]
#              [TSAN_FILTER <--gtest_filter> | TSAN_ALL])
#
# One test binary per directory, <name>_tests, registered with ctest test by
# test, so that its summary says what ran. Under ThreadSanitizer only what
# TSAN_FILTER names is run (TSAN_ALL: everything), nothing without either:
# libraries that are not instrumented make it report races that are none.
# Tests run side by side on few cores; for GOMP_SPINCOUNT see base/openmp.h.
function(vitrine_test name)
  cmake_parse_arguments(ARG "TSAN_ALL" "TIMEOUT;TSAN_FILTER"
                        "SOURCES;LIBS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name}_tests ${ARG_SOURCES})
  target_link_libraries(${name}_tests PRIVATE ${ARG_LIBS} GTest::gmock
                                              GTest::gtest_main)
  target_compile_definitions(
    ${name}_tests
    PRIVATE VITRINE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data"
            VITRINE_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
            VITRINE_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
  if(VITRINE_SANITIZE STREQUAL "thread")
    if(NOT ARG_TSAN_FILTER AND NOT ARG_TSAN_ALL)
      return()
    endif()
    if(ARG_TSAN_FILTER)
      set(filter "--gtest_filter=${ARG_TSAN_FILTER}")
    endif()
    add_test(NAME ${name} COMMAND ${name}_tests ${filter})
    math(EXPR timeout "${ARG_TIMEOUT} * 6")
    set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} LABELS ${name}
                                            ENVIRONMENT GOMP_SPINCOUNT=0)
  elseif(VITRINE_SANITIZE)
    # A process per test is slow under a sanitizer: one per binary.
    add_test(NAME ${name} COMMAND ${name}_tests)
    math(EXPR timeout "${ARG_TIMEOUT} * 6")
    set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} LABELS ${name}
                                            ENVIRONMENT GOMP_SPINCOUNT=0)
  else()
    include(GoogleTest)
    gtest_discover_tests(${name}_tests TEST_PREFIX "${name}/" NO_PRETTY_VALUES
                         PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS ${name}
                                    ENVIRONMENT GOMP_SPINCOUNT=0
                         DISCOVERY_TIMEOUT 60)
  endif()
endfunction()
