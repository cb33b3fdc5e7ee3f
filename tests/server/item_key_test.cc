#include "server/item_key.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/vector_cache.h"

namespace vitrine {
namespace {

TEST(ItemKeyTest, DependsOnEveryTextAndTheMakerOnly) {
  v1::Item item;
  item.set_title("sofa");
  item.set_brand("acme");
  item.add_categories("living");
  (*item.mutable_attributes())["color"] = "red";
  const ItemKey key = KeyOf("m", item);
  v1::Item same = item;
  same.set_id("another id");
  EXPECT_EQ(KeyOf("m", same), key);
  EXPECT_NE(KeyOf("n", item), key);
  std::vector<v1::Item> others(6, item);
  others[0].set_title("sofas");
  others[1].set_brand("");
  others[2].set_description("x");
  others[3].add_categories("");
  (*others[4].mutable_attributes())["color"] = "blue";
  (*others[5].mutable_attributes())["colour"] = "red";
  for (const v1::Item& other : others) {
    EXPECT_NE(KeyOf("m", other), key) << other.ShortDebugString();
  }
}

TEST(ItemKeyTest, TellsTextThatMovedFromOneFieldToTheNext) {
  v1::Item a, b;
  a.set_title("ab");
  a.set_brand("c");
  b.set_title("a");
  b.set_brand("bc");
  EXPECT_NE(KeyOf("m", a), KeyOf("m", b));
  v1::Item category, attribute;
  category.add_categories("x");
  (*attribute.mutable_attributes())["x"];
  EXPECT_NE(KeyOf("m", category), KeyOf("m", attribute));
}

TEST(ItemKeyTest, DoesNotDependOnTheOrderOfAttributes) {
  v1::Item a, b;
  for (int i = 0; i < 20; ++i) {
    (*a.mutable_attributes())[std::to_string(i)] = "x";
    (*b.mutable_attributes())[std::to_string(19 - i)] = "x";
  }
  EXPECT_EQ(KeyOf("m", a), KeyOf("m", b));
}

TEST(ItemKeyTest, MakersOfVectorsDependOnModelVersionAndHead) {
  const std::string maker = VectorMaker("m", "1", "h");
  EXPECT_EQ(VectorMaker("m", "1", "h"), maker);
  EXPECT_NE(VectorMaker("n", "1", "h"), maker);
  EXPECT_NE(VectorMaker("m", "2", "h"), maker);
  EXPECT_NE(VectorMaker("m", "1", "g"), maker);
  EXPECT_NE(VectorMaker("m", "12", "h"), VectorMaker("m1", "2", "h"));
}

}  // namespace
}  // namespace vitrine
