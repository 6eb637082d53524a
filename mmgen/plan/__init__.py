from mmgen.plan.next_token import NextToken
from mmgen.plan.plan import GenerationPlan, PlanBatch

__all__ = ["GenerationPlan", "NextToken", "PlanBatch"]
