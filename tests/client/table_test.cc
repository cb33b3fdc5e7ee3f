#include "client/table.h"

#include <gtest/gtest.h>

namespace vitrine {
namespace {

TEST(TableTest, WidthCountsColumnsNotBytes) {
  EXPECT_EQ(DisplayWidth("sofa"), 4);
  EXPECT_EQ(DisplayWidth("Möbel"), 5);
  EXPECT_EQ(DisplayWidth("沙发"), 4);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1);
  EXPECT_EQ(DisplayWidth("\xff"), 1);
}

TEST(TableTest, PrintableTakesAwayWhatATerminalWouldObey) {
  EXPECT_EQ(Printable("a\x1b[31mb\nc\td"), "a [31mb c d");
  EXPECT_EQ(Printable("a\u202Eb"), "a b");
  EXPECT_EQ(Printable("a\xff"
                      "b"),
            "a\uFFFDb");
}

TEST(TableTest, PrintableCutsToColumns) {
  EXPECT_EQ(Printable("sofa", 4), "sofa");
  EXPECT_EQ(Printable("sofas", 4), "sof…");
  EXPECT_EQ(Printable("沙发床", 5), "沙发…");
  EXPECT_EQ(Printable("沙发床", 4), "沙…");
  EXPECT_EQ(DisplayWidth(Printable("沙发床沙发床", 7)), 7);
}

TEST(TableTest, AlignsColumns) {
  Table table;
  table.AddColumn("rank", Table::kRight);
  table.AddColumn("title");
  table.AddColumn("id");
  table.AddRow({"1", "沙发", "a"});
  table.AddRow({"10", "Möbel", "b"});
  EXPECT_EQ(table.ToString(),
            "rank  title  id\n"
            "   1  沙发   a\n"
            "  10  Möbel  b\n");
}

TEST(TableTest, LeavesOutColumnsWithoutCells) {
  Table table;
  table.AddColumn("a");
  table.AddColumn("empty");
  table.AddColumn("b");
  table.AddRow({"1", "", "2"});
  EXPECT_EQ(table.ToString(), "a  b\n1  2\n");
}

}  // namespace
}  // namespace vitrine
