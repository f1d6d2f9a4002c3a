# `mix credo --strict` finds nothing with these settings. They are also those of emlx_axon and emlx_bumblebee.
%{
  configs: [
    %{
      name: "default",
      files: %{included: ["lib/", "test/", "mix/", "bench/", "mix.exs"], excluded: ["/_build/", "/deps/"]},
      checks: %{
        extra: [
          # Numerical code has a loop within a case. In tests, a generator of calls is one function for a family.
          {Credo.Check.Refactor.Nesting, max_nesting: 3, files: %{excluded: ["test/", "bench/"]}},
          {Credo.Check.Refactor.CyclomaticComplexity, max_complexity: 12, files: %{excluded: ["test/", "bench/"]}},
          # Operators are part of most conditions here.
          {Credo.Check.Refactor.MatchInCondition, allow_operators: true},
          # Expressions of `cond` in `defn` are tested with as many conditions as a test needs.
          {Credo.Check.Refactor.CondStatements, files: %{excluded: ["test/"]}},
          # The stubs of the NIF have the names of Rust's functions.
          {Credo.Check.Readability.PredicateFunctionNames, files: %{excluded: ["lib/core/emlx/native.ex"]}}
        ],
        disabled: [
          # A name in full is often clearer than its last part, such as that of EMLX.Block.Error.
          {Credo.Check.Design.AliasUsage, []},
          # Axon has no types for its structs.
          {Credo.Check.Warning.SpecWithStruct, []},
          # It takes the digits after a decimal point for a number of their own.
          {Credo.Check.Readability.LargeNumbers, []}
        ]
      }
    }
  ]
}
