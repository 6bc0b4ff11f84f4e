"""Say exactly what a swap did, and hold it against a replay in float64.

The plan is the intervention as data.  The ledger counts who read whom.  The audit computes each
swap again by code that shares no arithmetic with what ran.

    python -m textpatch.examples.auditing_a_run

prints

    What is asked, as an equation and as the tensors it touches:
    edited <- target:  softmax(q [k_image; k']^T / sqrt(D)) [v_image; v']
      steps 1, 2, 3; heads all; tokens all; branch both
      k', v' of row target, same step and branch; readers x heads x tokens x head_dim:
         1  transformer_blocks.1.attn  (joint)
              k' transformer_blocks.1.attn.add_k_proj  1 x 2 x T x 32
              v' transformer_blocks.1.attn.add_v_proj  1 x 2 x T x 32

    What happened:
    step  site  timestep   sigma   reader <- donor  K hits  V hits  K change  V change
       1     1     857.7  0.8577  edited <- target      88      88      7.45      10.8
       2     1     602.2  0.6022  edited <- target      88      88      7.66      11.2
       3     1       8.9  0.0089  edited <- target      88      88      7.33      10.8

    How exactly it happened, at the first and the last step that a swap acts:
    site  step  swap    error  relative    eager     sdpa  allowed   effect  verdict
       1     1     0  3.0e-06   5.5e-07  3.0e-06  3.0e-06  5.4e-06  8.9e+00   passed
       1     1  none  5.1e-06   8.4e-07  3.7e-06  5.1e-06  6.6e-06  0.0e+00   passed
       1     3     0  3.6e-06   7.3e-07  2.4e-06  3.6e-06  5.3e-06  8.4e+00   passed
       1     3  none  3.8e-06   6.2e-07  3.8e-06  3.8e-06  6.8e-06  0.0e+00   passed
    4 of 4 checks passed

    The plan as data, and the same plan read back:
    True a225bf41bf87ca5c
"""

from textpatch import Plan, Row, Swap, audit, load, sample

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a red sign that says "TIGER" on a blue wall'
STEPS = 4


def main() -> None:
    pipeline = load("tiny-mmdit")
    rows = [Row("source", SOURCE), Row("target", TARGET), Row("edited", SOURCE)]
    plan = Plan([Swap(sites=1, readers="edited", donor="target", steps=range(1, STEPS))])

    print("What is asked, as an equation and as the tensors it touches:")
    print(plan.explain(pipeline.denoiser.sites))

    print("\nWhat happened:")
    samples = sample(pipeline, rows, plan, steps=STEPS, guidance=1)
    print(samples.ledger)

    print("\nHow exactly it happened, at the first and the last step that a swap acts:")
    report = audit(pipeline, rows, plan, sample=sample, steps=STEPS, guidance=1, at=[1, STEPS - 1])
    print(report)
    report.require()  # a PatchError unless every check passed

    print("\nThe plan as data, and the same plan read back:")
    stored = plan.to_json()
    print(Plan.from_json(stored) == plan, plan.sha256[:16])


if __name__ == "__main__":
    main()
