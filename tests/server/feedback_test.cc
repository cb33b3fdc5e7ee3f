// What the server does with feedback.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "store/sql.h"
#include "tests/server/learning_fixture.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr grpc::StatusCode kInvalid = grpc::StatusCode::INVALID_ARGUMENT;

class FeedbackTest : public LearningTest {
 protected:
  struct Stream {
    grpc::ClientContext context;
    v1::ImportFeedbackResponse response;
    std::unique_ptr<grpc::ClientWriter<v1::ImportFeedbackRequest>> writer;

    bool Send(const std::vector<v1::Feedback>& entries,
              const std::string& model = "") {
      v1::ImportFeedbackRequest request;
      request.set_model(model);
      for (const v1::Feedback& entry : entries) *request.add_feedback() = entry;
      return writer->Write(request);
    }
    grpc::Status Finish() {
      writer->WritesDone();
      return writer->Finish();
    }
  };

  std::unique_ptr<Stream> Import() {
    auto stream = std::make_unique<Stream>();
    stream->writer =
        feedback_->ImportFeedback(&stream->context, &stream->response);
    return stream;
  }

  static std::vector<v1::Feedback> Judgements(const std::string& prefix,
                                              int count) {
    std::vector<v1::Feedback> out;
    for (int i = 0; i < count; ++i) {
      out.push_back(Judgement(absl::StrCat(prefix, i)));
    }
    return out;
  }

  size_t OnDisk() { return Stored().size(); }

  double Entries(v1::FeedbackOutcome outcome) {
    return server_->metrics().feedback(outcome).Value();
  }
};

v1::Feedback Event(const std::string& id) {
  v1::Feedback feedback;
  feedback.set_feedback_id(id);
  v1::InteractionEvent& event = *feedback.mutable_interaction();
  event.set_user_id("u1");
  event.set_session_id("visit");
  *event.mutable_item() = Item("s1", "Sofa, red");
  event.set_type(v1::INTERACTION_TYPE_SKIP);
  event.set_position(3);
  event.set_impression_id("list-1");
  event.set_query("sofa");
  return feedback;
}

v1::Feedback Interest(const std::string& id) {
  v1::Feedback feedback;
  feedback.set_feedback_id(id);
  *feedback.mutable_interest()->add_history()->mutable_item() =
      Item("s1", "Sofa, red");
  feedback.mutable_interest()->add_categories("sofas");
  return feedback;
}

v1::Feedback TextLabel(const std::string& id) {
  v1::Feedback feedback;
  feedback.set_feedback_id(id);
  feedback.mutable_text_label()->set_head("sentiment");
  feedback.mutable_text_label()->set_text("a nice sofa");
  feedback.mutable_text_label()->set_label("positive");
  return feedback;
}

TEST_F(FeedbackTest, WhatIsAnsweredAsStoredIsOnDisk) {
  StartLearning();
  const std::vector<v1::Feedback> sent = {Judgement("a", 0.25f), Event("b"),
                                          Interest("c"), TextLabel("d")};
  v1::RecordFeedbackResponse response;
  const grpc::Status status = Record(sent, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.stored(), 4);
  ASSERT_THAT(response.results(), SizeIs(4));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(response.results(i).index(), i);
    EXPECT_EQ(response.results(i).feedback_id(), sent[i].feedback_id());
    EXPECT_EQ(response.results(i).outcome(), v1::FEEDBACK_OUTCOME_STORED);
    EXPECT_FALSE(response.results(i).has_error());
  }
  const std::vector<v1::Feedback> stored = Stored();
  ASSERT_THAT(stored, SizeIs(4));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(stored[i].DebugString(), sent[i].DebugString());
  }
}

TEST_F(FeedbackTest, SendingAgainChangesNothing) {
  StartLearning();
  v1::RecordFeedbackResponse response;
  ASSERT_TRUE(Record({Judgement("a", 0.25f)}, &response).ok());
  ASSERT_TRUE(
      Record({Judgement("b"), Judgement("a", 0.75f), Judgement("b")}, &response)
          .ok());
  EXPECT_EQ(response.stored(), 1);
  EXPECT_EQ(response.duplicates(), 2);
  EXPECT_EQ(response.results(0).outcome(), v1::FEEDBACK_OUTCOME_STORED);
  EXPECT_EQ(response.results(1).outcome(), v1::FEEDBACK_OUTCOME_DUPLICATE);
  EXPECT_EQ(response.results(2).outcome(), v1::FEEDBACK_OUTCOME_DUPLICATE);
  const std::vector<v1::Feedback> stored = Stored();
  ASSERT_THAT(stored, SizeIs(2));
  EXPECT_EQ(stored[0].relevance().grade(), 0.25f);
  EXPECT_EQ(Entries(v1::FEEDBACK_OUTCOME_STORED), 2);
  EXPECT_EQ(Entries(v1::FEEDBACK_OUTCOME_DUPLICATE), 2);
}

TEST_F(FeedbackTest, RejectsABadEntryAloneAndNamesFieldAndValue) {
  StartLearning(
      "limits { max_field_bytes: 200 max_attributes: 3 max_history: 2 }");
  const int64_t now = absl::ToUnixSeconds(absl::Now());
  std::vector<std::pair<v1::Feedback, std::string>> cases;
  const auto add = [&cases](v1::Feedback entry, const std::string& text,
                            auto change) {
    entry.set_feedback_id(absl::StrCat("bad", cases.size()));
    change(entry);
    cases.emplace_back(std::move(entry), text);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string wide(201, 'a');

  add(Judgement(""), "feedback_id: is empty",
      [](auto& f) { f.clear_feedback_id(); });
  add(Judgement(""), "feedback_id: 129 bytes > 128",
      [](auto& f) { f.set_feedback_id(std::string(129, 'a')); });
  add(Judgement(""), "feedback_id: \"a\\x00\\x62\" holds a NUL",
      [](auto& f) { f.set_feedback_id(std::string("a\0b", 3)); });
  add(Judgement(""), "kind: says nothing", [](auto& f) { f.clear_kind(); });
  add(Judgement(""), "s since 1970 lies in the future; it is ",
      [now](auto& f) { f.mutable_time()->set_seconds(now + 3600); });
  add(Judgement(""), "time: -1 s lies before 1970",
      [](auto& f) { f.mutable_time()->set_seconds(-1); });
  add(Judgement(""), "time.nanos: 1000000000 is not in",
      [](auto& f) { f.mutable_time()->set_nanos(1000000000); });

  add(Judgement(""), "relevance.query: is empty",
      [](auto& f) { f.mutable_relevance()->set_query(" \t "); });
  add(Judgement(""), "relevance.query: 201 bytes > 200",
      [&](auto& f) { f.mutable_relevance()->set_query(wide); });
  add(Judgement(""), "relevance.item: has neither title nor description",
      [](auto& f) { f.mutable_relevance()->mutable_item()->clear_title(); });
  add(Judgement(""), "relevance.item.description: 201 bytes > 200",
      [&](auto& f) {
        f.mutable_relevance()->mutable_item()->set_description(wide);
      });
  add(Judgement(""), "relevance.grade: -0.1 is not in [0, 1]",
      [](auto& f) { f.mutable_relevance()->set_grade(-0.1f); });
  add(Judgement(""), "relevance.grade: 1.5 is not in [0, 1]",
      [](auto& f) { f.mutable_relevance()->set_grade(1.5f); });
  add(Judgement(""), "relevance.grade: nan is not in [0, 1]",
      [nan](auto& f) { f.mutable_relevance()->set_grade(nan); });

  add(Event(""), "interaction.user_id: is empty",
      [](auto& f) { f.mutable_interaction()->clear_user_id(); });
  add(Event(""), "interaction.user_id: 129 bytes", [](auto& f) {
    f.mutable_interaction()->set_user_id(std::string(129, 'a'));
  });
  add(Event(""), "interaction.session_id: 129 bytes", [](auto& f) {
    f.mutable_interaction()->set_session_id(std::string(129, 'a'));
  });
  add(Event(""), "interaction.impression_id: 129 bytes", [](auto& f) {
    f.mutable_interaction()->set_impression_id(std::string(129, 'a'));
  });
  add(Event(""), "interaction.item.id: is empty",
      [](auto& f) { f.mutable_interaction()->mutable_item()->clear_id(); });
  add(Event(""), "interaction.item: has neither",
      [](auto& f) { f.mutable_interaction()->mutable_item()->clear_title(); });
  add(Event(""), "interaction.item.categories: 4 > 3", [](auto& f) {
    for (int i = 0; i < 4; ++i) {
      f.mutable_interaction()->mutable_item()->add_categories("c");
    }
  });
  add(Event(""), "interaction.query: 201 bytes",
      [&](auto& f) { f.mutable_interaction()->set_query(wide); });
  add(Event(""), "interaction.type: 0 is unknown",
      [](auto& f) { f.mutable_interaction()->clear_type(); });
  add(Event(""), "interaction.type: 99 is unknown", [](auto& f) {
    f.mutable_interaction()->set_type(static_cast<v1::InteractionType>(99));
  });
  add(Event(""), "interaction.position: -1 is negative",
      [](auto& f) { f.mutable_interaction()->set_position(-1); });

  add(Interest(""), "interest.history: is empty",
      [](auto& f) { f.mutable_interest()->clear_history(); });
  add(Interest(""), "interest.history: 3 > 2", [](auto& f) {
    for (int i = 0; i < 2; ++i) {
      *f.mutable_interest()->add_history() = f.interest().history(0);
    }
  });
  add(Interest(""), "interest.history[1].item: has neither",
      [](auto& f) { f.mutable_interest()->add_history(); });
  add(Interest(""), "interest.categories: 4 > 3", [](auto& f) {
    for (int i = 0; i < 3; ++i) f.mutable_interest()->add_categories("c");
  });
  add(Interest(""), "interest.categories: is empty",
      [](auto& f) { f.mutable_interest()->add_categories(""); });
  add(Interest(""), "interest.user_id: 129 bytes", [](auto& f) {
    f.mutable_interest()->set_user_id(std::string(129, 'a'));
  });

  add(TextLabel(""), "text_label.head: is empty",
      [](auto& f) { f.mutable_text_label()->clear_head(); });
  add(TextLabel(""), "text_label.head: \"Mood\" is not of the form",
      [](auto& f) { f.mutable_text_label()->set_head("Mood"); });
  add(TextLabel(""), "text_label.text: is empty",
      [](auto& f) { f.mutable_text_label()->clear_text(); });
  add(TextLabel(""), "text_label.text: 201 bytes",
      [&](auto& f) { f.mutable_text_label()->set_text(wide); });
  add(TextLabel(""), "text_label.label: is empty",
      [](auto& f) { f.mutable_text_label()->clear_label(); });

  std::vector<v1::Feedback> sent;
  for (const auto& [entry, text] : cases) sent.push_back(entry);
  sent.push_back(Judgement("good"));
  // Clocks differ.
  sent.push_back(Judgement("soon"));
  sent.back().mutable_time()->set_seconds(now + 200);
  v1::RecordFeedbackResponse response;
  const grpc::Status status = Record(sent, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.rejected(), cases.size());
  EXPECT_EQ(response.stored(), 2);
  ASSERT_EQ(response.results_size(), sent.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    const v1::FeedbackResult& result = response.results(static_cast<int>(i));
    EXPECT_EQ(result.outcome(), v1::FEEDBACK_OUTCOME_REJECTED);
    EXPECT_EQ(result.error().code(), kInvalid);
    EXPECT_THAT(result.error().message(), HasSubstr(cases[i].second));
  }
  EXPECT_EQ(response.results(1).feedback_id(), "") << "too long to be echoed";
  EXPECT_THAT(StoredIds(), ElementsAre("good", "soon"));
  EXPECT_EQ(Entries(v1::FEEDBACK_OUTCOME_REJECTED), cases.size());
}

TEST_F(FeedbackTest, InvalidUtf8RejectsItsEntryOnly) {
  StartLearning();
  v1::RecordFeedbackRequest request;
  *request.add_feedback() = Judgement("a");
  *request.add_feedback() = Judgement("b");
  request.mutable_feedback(1)->mutable_relevance()->set_query("so@@fa");
  *request.add_feedback() = Judgement("c");
  std::string bytes = request.SerializeAsString();
  bytes.replace(bytes.find("@@"), 2, "\xff\xfe");
  v1::RecordFeedbackResponse response;
  const grpc::Status status =
      Raw("RecordFeedback", bytes, &response, "vitrine.v1.FeedbackService");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.stored(), 2);
  EXPECT_EQ(response.results(1).outcome(), v1::FEEDBACK_OUTCOME_REJECTED);
  EXPECT_EQ(response.results(1).error().message(),
            "feedback[1].relevance.query: invalid UTF-8 at byte 2");
  EXPECT_THAT(StoredIds(), ElementsAre("a", "c"));
}

TEST_F(FeedbackTest, RefusesCallsThatAreWrongAsAWhole) {
  StartLearning("limits { max_feedback: 3 }");
  v1::RecordFeedbackResponse response;
  grpc::Status status = Record({}, &response);
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_EQ(status.error_message(), "feedback: at least one is needed");
  status = Record(Judgements("a", 4), &response);
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_EQ(status.error_message(), "feedback: 4 > 3 (limits.max_feedback)");
  status = Record({Judgement("a")}, &response, "shoes");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("\"shoes\""), HasSubstr("shop/1")));
  EXPECT_THAT(Stored(), IsEmpty());
}

TEST_F(FeedbackTest, AHundredMegabytesOfLabelsAreTooMany) {
  StartLearning();
  std::vector<v1::Feedback> entries = Judgements("a", 1000);
  for (v1::Feedback& entry : entries) {
    entry.mutable_relevance()->mutable_item()->set_description(
        std::string(100000, 'a'));
  }
  v1::RecordFeedbackResponse response;
  EXPECT_EQ(Record(entries, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto import = Import();
  import->Send(entries);
  EXPECT_EQ(import->Finish().error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(Stored(), IsEmpty());
  EXPECT_TRUE(Record({Judgement("b")}, &response).ok());
}

TEST_F(FeedbackTest, WithoutAStoreItIsUnimplemented) {
  Start();
  feedback_ = v1::FeedbackService::NewStub(channel_);
  v1::RecordFeedbackResponse response;
  const grpc::Status status = Record({Judgement("a")}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("no label store"));
  EXPECT_EQ(Import()->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(server_->admin_port(), 0);
}

TEST_F(FeedbackTest, ALockedDatabaseIsUnavailableAndLosesNothing) {
  StartLearning("", "lock_timeout { nanos: 50000000 }");
  const std::unique_ptr<Database> other = OpenStore();
  v1::RecordFeedbackResponse response;
  ASSERT_TRUE(Record({Judgement("a")}, &response).ok());
  ASSERT_TRUE(
      other->sql()
          .Write([&](SqlConnection&) {
            const grpc::Status status = Record({Judgement("b")}, &response);
            EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
            EXPECT_THAT(status.error_message(), HasSubstr("locked"));
            const auto import = Import();
            import->Send({Judgement("c")});
            EXPECT_EQ(import->Finish().error_code(),
                      grpc::StatusCode::UNAVAILABLE);
            return absl::OkStatus();
          })
          .ok());
  ASSERT_TRUE(Record({Judgement("b"), Judgement("c")}, &response).ok());
  EXPECT_EQ(response.stored(), 2);
  EXPECT_THAT(StoredIds(), ElementsAre("a", "b", "c"));
}

TEST_F(FeedbackTest, MoreThanFitsIsRefusedWithADelay) {
  StartLearning("", "max_waiting: 10 lock_timeout { seconds: 60 }");
  const std::unique_ptr<Database> other = OpenStore();
  std::thread first;
  ASSERT_TRUE(
      other->sql()
          .Write([&](SqlConnection&) {
            first = std::thread([this] {
              v1::RecordFeedbackResponse response;
              EXPECT_TRUE(Record(Judgements("a", 8), &response).ok());
            });
            EXPECT_TRUE(Eventually([this] {
              return server_->metrics().feedback_waiting().Value() == 8;
            }));
            v1::RecordFeedbackResponse response;
            const grpc::Status full = Record(Judgements("b", 3), &response);
            EXPECT_EQ(full.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
            EXPECT_THAT(full.error_message(),
                        HasSubstr("8 entries wait to be committed; with 3 "
                                  "more: > 10 (store.max_waiting)"));
            EXPECT_GT(RetrySeconds(full), 0);
            return absl::OkStatus();
          })
          .ok());
  first.join();
  EXPECT_EQ(server_->metrics().feedback_waiting().Value(), 0);
  v1::RecordFeedbackResponse response;
  EXPECT_TRUE(Record(Judgements("b", 30), &response).ok())
      << "one that finds none waiting may be larger";
  EXPECT_EQ(OnDisk(), 38);
}

TEST_F(FeedbackTest, ImportCountsAndListsTheFirstHundredRejections) {
  StartLearning();
  const auto import = Import();
  EXPECT_TRUE(import->Send(Judgements("a", 10), "shop"));
  std::vector<v1::Feedback> mixed = Judgements("b", 150);
  for (int i = 0; i < 120; ++i) mixed[i].mutable_relevance()->set_grade(2);
  mixed[149] = Judgement("a3");
  EXPECT_TRUE(import->Send(mixed));
  EXPECT_TRUE(import->Send({}));
  EXPECT_TRUE(import->Send(Judgements("c", 5)));
  const grpc::Status status = import->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const v1::ImportFeedbackResponse& response = import->response;
  EXPECT_EQ(response.stored(), 10 + 29 + 5);
  EXPECT_EQ(response.duplicates(), 1);
  EXPECT_EQ(response.rejected(), 120);
  ASSERT_THAT(response.rejections(), SizeIs(100));
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(response.rejections(i).index(), 10 + i);
    EXPECT_EQ(response.rejections(i).feedback_id(), absl::StrCat("b", i));
    EXPECT_EQ(response.rejections(i).error().code(), kInvalid);
  }
  EXPECT_EQ(OnDisk(), 44);
  EXPECT_EQ(Counter(Method::kImportFeedback, absl::StatusCode::kOk), 1);
}

TEST_F(FeedbackTest, AnEmptyImportStoresNothing) {
  StartLearning();
  const auto import = Import();
  EXPECT_TRUE(import->Finish().ok());
  EXPECT_EQ(import->response.stored(), 0);
}

TEST_F(FeedbackTest, ABadMessageEndsAnImportAndWhatCameBeforeStays) {
  StartLearning("limits { max_feedback: 3 }");
  auto import = Import();
  EXPECT_TRUE(import->Send(Judgements("a", 2)));
  EXPECT_TRUE(Eventually([this] { return OnDisk() == 2; }));
  import->Send(Judgements("b", 4));
  grpc::Status status = import->Finish();
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_EQ(status.error_message(), "feedback: 4 > 3 (limits.max_feedback)");
  EXPECT_THAT(StoredIds(), ElementsAre("a0", "a1"));

  import = Import();
  import->Send(Judgements("b", 1), "shoes");
  EXPECT_EQ(import->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(FeedbackTest, ACallerThatVanishesLeavesWhatWasCommitted) {
  StartLearning();
  const auto import = Import();
  EXPECT_TRUE(import->Send(Judgements("a", 7)));
  EXPECT_TRUE(Eventually([this] { return OnDisk() == 7; }));
  import->context.TryCancel();
  EXPECT_EQ(import->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually(
      [this] { return server_->metrics().calls_in_flight().Value() == 0; }));
  v1::RecordFeedbackResponse response;
  EXPECT_TRUE(Record(Judgements("b", 1), &response).ok());
  EXPECT_EQ(OnDisk(), 8);
}

TEST_F(FeedbackTest, StopEndsAnImportThatIdles) {
  StartLearning("drain_timeout { seconds: 100 }");
  const auto import = Import();
  EXPECT_TRUE(import->Send(Judgements("a", 7)));
  EXPECT_TRUE(Eventually([this] { return OnDisk() == 7; }));
  const absl::Time start = absl::Now();
  server_->Stop();
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  EXPECT_EQ(import->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(OnDisk(), 7);
}

TEST_F(FeedbackTest, StopEndsImportsThatRun) {
  StartLearning("drain_timeout { seconds: 100 }");
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([this, t] {
      const auto import = Import();
      for (int i = 0;
           import->Send(Judgements(absl::StrCat("t", t, "-", i, "-"), 20));
           ++i) {
      }
      EXPECT_EQ(import->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    });
  }
  EXPECT_TRUE(Eventually([this] { return OnDisk() >= 1000; }));
  const absl::Time start = absl::Now();
  server_->Stop();
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(OnDisk(), Entries(v1::FEEDBACK_OUTCOME_STORED));
}

TEST_F(FeedbackTest, WhatWasAnsweredBeforeAStopIsOnDisk) {
  StartLearning();
  std::atomic<int> stored{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([this, t, &stored] {
      v1::RecordFeedbackResponse response;
      for (int i = 0;
           Record({Judgement(absl::StrCat(t, "-", i))}, &response).ok(); ++i) {
        stored += response.stored();
      }
    });
  }
  EXPECT_TRUE(Eventually([&stored] { return stored >= 50; }));
  server_->Stop();
  for (std::thread& caller : callers) caller.join();
  EXPECT_GE(OnDisk(), stored);
}

TEST_F(FeedbackTest, ServesWhileFeedbackWaitsForTheDatabase) {
  StartLearning("pool_threads: 1", "lock_timeout { seconds: 60 }");
  const std::unique_ptr<Database> other = OpenStore();
  std::thread caller;
  ASSERT_TRUE(other->sql()
                  .Write([&](SqlConnection&) {
                    caller = std::thread([this] {
                      v1::RecordFeedbackResponse response;
                      EXPECT_TRUE(Record({Judgement("a")}, &response).ok());
                    });
                    EXPECT_TRUE(Eventually([this] {
                      return server_->metrics().feedback_waiting().Value() == 1;
                    }));
                    EXPECT_TRUE(Refusal(RankOf("q", {"sofa"})).ok());
                    return absl::OkStatus();
                  })
                  .ok());
  caller.join();
}

}  // namespace
}  // namespace vitrine
